"""Everything in the documentation that is generated: figures are measured once, kept as JSON, and never typed by hand.

===========  =========================================  ===========================  ==============================
module       writes                                     from                         measured by
===========  =========================================  ===========================  ==============================
benchmarks   docs/tables, docs/benchmarks.md            docs/results/tables          tools/reproduce_tables.py
photographs  docs/benchmarks.md, the README's table     docs/results/photographs     tools/benchmark_photographs.py
plot         docs/figures/psnr_time.png                 docs/results/tables          the same
routing      docs/tables/index.md                       docs/results/routing         tools/routing_by_distance.py
kernels      docs/tables/speed.md                       docs/results/kernels_*       tools/benchmark_kernels.py
                                                        docs/results/int8_*          tools/benchmark_int8.py
speed        docs/kernels.md                            the same, and photographs    the same
int8         docs/benchmarks.md                         docs/results/int8_quality    tools/benchmark_int8.py
pruning      docs/pruning.md                            docs/results/prune           tools/benchmark_pruning.py
reliability  docs/reliability.md                        docs/results/reliability     tools/reliability/run.py
options      docs/options.md, docs/options.schema.json  basicsr_classpruning/config
===========  =========================================  ===========================  ==============================

``python -m tools.pages`` writes all, ``python -m tools.pages NAME ...`` some of them; ``tests/test_pages.py`` sees that
pages and results agree. Each module has ``write(root)``, which replaces what stands between ``<!-- NAME -->`` and the
next ``<!-- end -->`` in the pages below that folder. Only docs/figures/class_map.jpg needs a trained network:
``tools/class_map_figure.py``.
"""
