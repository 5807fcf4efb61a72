// What lies between the layers of a block (between_layout.h), for one instruction set.
#pragma once
#include "between_layout.h"
#include "tiles.h"

namespace {

// --- depthwise 3 x 3 ---------------------------------------------------------------------------------------------------

// Output rows of one plane and one column of vectors, from the top to the bottom. Each input row is read once: it
// completes one output row, continues the next and begins the one after.
struct depthwise_rows {
  vec weight[9], bias, continued, begun;

  void start(const cp_depthwise_call& call, long channel) {
    for (int t = 0; t < 9; t++) weight[t] = broadcast(call.weight[channel * 9 + t]);
    bias = begun = broadcast(call.bias ? call.bias[channel] : 0.f);
    continued = vec{};
  }

  // Takes the next input row's values to the left, here and to the right. Returns the output row above it.
  inline __attribute__((always_inline)) vec take(vec a, vec b, vec c) {
    const vec complete = continued + a * weight[6] + b * weight[7] + c * weight[8];
    continued = begun + a * weight[3] + b * weight[4] + c * weight[5];
    begun = bias + a * weight[0] + b * weight[1] + c * weight[2];
    return complete;
  }
};

// A plane of the output, of N planes of the input: two are multiplied with each other. Returns the sum of the plane.
template <int N, int ACTIVATION, bool MASKED>
vec depthwise_column(const cp_depthwise_call& call, const float* const* planes, const long* channels, float* y, long x0,
                     vec slope) {
  const columns left(x0 - 1, 1, call.width), middle(x0, 1, call.width), right(x0 + 1, 1, call.width);
  const int count = static_cast<int>(at_most(CP_WIDTH, call.width - x0));
  depthwise_rows rows[N];
  for (int n = 0; n < N; n++) rows[n].start(call, channels[n]);
  vec total{};
  const auto store = [&](long row, vec value) {
    value = activate<ACTIVATION>(value, slope);
    store_some(y + row * call.width + x0, value, count);
    total += value;
  };
  for (long row = 0; row < call.height; row++) {
    vec product;
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const float* p = planes[n] + row * call.width + x0;
      vec complete;
      if constexpr (MASKED)
        complete = rows[n].take(masked_load(p - 1, left.inside), masked_load(p, middle.inside),
                                masked_load(p + 1, right.inside));
      else
        complete = rows[n].take(load_all(p - 1), load_all(p), load_all(p + 1));
      product = n ? product * complete : complete;
    }
    if (row > 0) store(row - 1, product);
  }
  vec last = rows[0].continued;
  if constexpr (N == 2) last *= rows[1].continued;
  store(call.height - 1, last);
  for (int l = count; l < CP_WIDTH; l++) total[l] = 0.f;
  return total;
}

template <int N, int ACTIVATION>
void depthwise_plane(const cp_depthwise_call& call, long image, long channel) {
  const long size = call.height * call.width, in_channels = N * call.channels;
  const long channels[2] = {channel, channel + call.channels};
  const float* planes[N];
  for (int n = 0; n < N; n++) planes[n] = call.x + (image * in_channels + channels[n]) * size;
  float* const y = call.y + (image * call.channels + channel) * size;
  const vec slope = call.slope ? broadcast(call.slope[ACTIVATION == CP_PRELU ? channel : 0]) : vec{};
  vec total{};
  for (long x0 = 0; x0 < call.width; x0 += CP_WIDTH)
    if (x0 > 0 && x0 + CP_WIDTH < call.width)
      total += depthwise_column<N, ACTIVATION, false>(call, planes, channels, y, x0, slope);
    else
      total += depthwise_column<N, ACTIVATION, true>(call, planes, channels, y, x0, slope);
  if (!call.means) return;
  float sum = 0;
  for (int l = 0; l < CP_WIDTH; l++) sum += total[l];
  call.means[image * call.channels + channel] = sum / static_cast<float>(size);
}

template <int ACTIVATION>
void run_depthwise_as(const cp_depthwise_call& call, long image, long channel) {
  call.gate ? depthwise_plane<2, ACTIVATION>(call, image, channel) : depthwise_plane<1, ACTIVATION>(call, image, channel);
}

void run_depthwise_plane(void* context, long index) {
  const cp_depthwise_call& call = *static_cast<const cp_depthwise_call*>(context);
  CP_WITH_ACTIVATION(call.activation, run_depthwise_as, call, index / call.channels, index % call.channels);
}

// --- window attention ----------------------------------------------------------------------------------------------------

// e^x for x <= 0, to 2e-7 of itself; below -87, where it is next to nothing, e^-87.
inline __attribute__((always_inline)) vec exponential(vec x) {
  const vec least = broadcast(-87.f);
  x = x < least ? least : x;
  const vec shifted = x * 1.44269504088896341f + 12582912.f;  // 1.5 * 2^23: the fraction is rounded away
  const vec whole = shifted - 12582912.f;
  const vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  lanes bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const lanes power = ((bits - 0x4b400000) + 127) << 23;
  vec factor;
  std::memcpy(&factor, &power, sizeof factor);
  return p * factor;
}

// out[m][n] = start[m][n] + sum over k of a[k][m] b[k][n], for M rows m and N vectors n.
struct small_product {
  const float* a;  // element (k, m) at k * a_k + m * a_m
  long a_k, a_m;
  const vec* b;  // rows b_k vectors apart
  long b_k;
  long inner;
  const float* start;  // or null; rows start_m floats apart
  long start_m;
  vec* out;
  long out_m;

  template <int M, int N>
  void block(long m0, long n0) const {
    vec s[M][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++)
        s[m][n] = start ? load_all(start + (m0 + m) * start_m + (n0 + n) * CP_WIDTH) : vec{};
    const float* from = a + m0 * a_m;
    const vec* row = b + n0;
    for (long k = 0; k < inner; k++, from += a_k, row += b_k) {
      vec x[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) x[n] = row[n];
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const vec w = broadcast(from[m * a_m]);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) s[m][n] += w * x[n];
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) out[(m0 + m) * out_m + n0 + n] = s[m][n];
  }

  template <int N>
  void columns_of(long rows, long n0) const {
    long m = 0;
    for (; m + 4 <= rows; m += 4) block<4, N>(m, n0);
    for (; m + 2 <= rows; m += 2) block<2, N>(m, n0);
    if (m < rows) block<1, N>(m, n0);
  }

  void run(long rows, long vectors) const {
    constexpr int N = CP_WIDTH == 16 ? 4 : 2;
    long n = 0;
    for (; n + N <= vectors; n += N) columns_of<N>(rows, n);
    for (; n < vectors; n++) columns_of<1>(rows, n);
  }
};

// to[i] = from[i] * factor(i), for the few pixels of a window's row: eight at a time, four, one.
template <class Factor>
inline __attribute__((always_inline)) void copy_run(float* to, const float* from, long number, Factor factor) {
  long i = 0;
  for (; i + 8 <= number; i += 8)
#pragma GCC ivdep
    for (int l = 0; l < 8; l++) to[i + l] = from[i + l] * factor(i + l);
  if (i + 4 <= number) {
#pragma GCC ivdep
    for (int l = 0; l < 4; l++) to[i + l] = from[i + l] * factor(i + l);
    i += 4;
  }
  for (; i < number; i++) to[i] = from[i] * factor(i);
}

struct attention {
  const cp_attention_call& call;
  int failed = 0;

  long tokens() const { return call.window * call.window; }
  long head_channels() const { return call.channels / call.heads; }
  long down() const { return call.height / call.window; }
  long across() const { return call.width / call.window; }

  // Where a window lies in the picture before it is rolled.
  struct place_of_window {
    long image, row, column;
  };

  // Calls f(index of the pixel in its plane, index in the window, number) for runs of the window's pixels.
  template <class F>
  void runs(const place_of_window& at, F f) const {
    const long s = call.window, x = at.column * s + call.shift;
    const long until_border = at_most(s, x < call.width ? call.width - x : 0);
    for (long r = 0; r < s; r++) {
      const long y = (at.row * s + r + call.shift) % call.height * call.width;
      if (until_border > 0) f(y + x, r * s, until_border);
      if (until_border < s) f(y + x + until_border - call.width, r * s + until_border, s - until_border);
    }
  }

  // Lowers the scores of pixels from opposite borders. Pixels with the same number in `sides` come from the same one.
  void lower_strangers(const place_of_window& at, vec* scores, float* sides) const {
    const long s = call.window, n = tokens(), near = s - call.shift, vectors = n / CP_WIDTH;
    const bool last_row = at.row + 1 == down(), last_column = at.column + 1 == across();
    if (!call.shift || !(last_row || last_column)) return;
    for (long y = 0; y < s; y++)
      for (long x = 0; x < s; x++) sides[y * s + x] = (last_row && y >= near ? 2.f : 0.f) + (last_column && x >= near ? 1.f : 0.f);
    const vec* const side = reinterpret_cast<const vec*>(sides);
    for (long key = 0; key < n; key++) {
      const vec mine = broadcast(sides[key]);
      for (long v = 0; v < vectors; v++, scores++) *scores = side[v] == mine ? *scores : *scores - 100.f;
    }
  }

  // Scores [key][query] become shares that sum up to `sums` for each query.
  void exponentials(vec* scores, long vectors, vec* sums) const {
    for (long v = 0; v < vectors; v++) {
      vec* const s = scores + v;
      const long n = tokens();
      vec most = s[0];
      for (long key = 1; key < n; key++) most = s[key * vectors] > most ? s[key * vectors] : most;
      vec sum{};
#pragma GCC unroll 4
      for (long key = 0; key < n; key++) {
        const vec share = exponential(s[key * vectors] - most);
        s[key * vectors] = share;
        sum += share;
      }
      sums[v] = sum;
    }
  }

  void run_window(long index) {
    const long n = tokens(), d = head_channels(), vectors = n / CP_WIDTH, plane = call.height * call.width;
    float* const q = cp::scratch((4 * d + 1 + n) * n);
    if (!q) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    float *const k = q + d * n, *const v = k + d * n, *const result = v + d * n, *const sums = result + d * n;
    vec* const scores = reinterpret_cast<vec*>(sums + n);
    const place_of_window at{index / across() / down(), index / across() % down(), index % across()};
    for (long head = 0; head < call.heads; head++) {
      for (long c = 0; c < 3 * d; c++) {
        const float* from = call.x + (at.image * 3 * call.channels + c / d * call.channels + head * d + c % d) * plane;
        const float factor = c < d ? call.scale : 1.f;
        float* to = q + c * n;
        runs(at, [&](long pixel, long token, long number) {
          copy_run(to + token, from + pixel, number, [&](long) { return factor; });
        });
      }
      small_product{k, n, 1, reinterpret_cast<vec*>(q), vectors, d, call.bias + head * n * n, n, scores, vectors}.run(n, vectors);
      lower_strangers(at, scores, sums);
      exponentials(scores, vectors, reinterpret_cast<vec*>(sums));
      small_product{v, 1, n, scores, vectors, n, nullptr, 0, reinterpret_cast<vec*>(result), vectors}.run(d, vectors);
      for (long i = 0; i < n; i++) sums[i] = 1.f / sums[i];
      for (long c = 0; c < d; c++) {
        float* to = call.y + (at.image * call.channels + head * d + c) * plane;
        const float* from = result + c * n;
        runs(at, [&](long pixel, long token, long number) {
          copy_run(to + pixel, from + token, number, [&](long i) { return sums[token + i]; });
        });
      }
    }
  }
};

void run_attention_window(void* context, long index) { static_cast<attention*>(context)->run_window(index); }

int run_depthwise(const cp_depthwise_call& call) {
  cp::parallel_for(call.batch * call.channels, call.threads, run_depthwise_plane, const_cast<cp_depthwise_call*>(&call));
  return CP_OK;
}

int run_attention(const cp_attention_call& call) {
  attention a{call};
  cp::parallel_for(call.batch * a.down() * a.across(), call.threads, run_attention_window, &a);
  return a.failed ? CP_NO_MEMORY : CP_OK;
}

}  // namespace
