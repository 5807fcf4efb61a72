"""Guards against files of strangers: checkpoints come from anywhere, and are only read.

What such a file may try, and what stops it:

* **Run code.** A pickle calls what it names. ``files`` reads with torch's restricted reader alone (``weights_only``),
  and says by name what was refused. A TorchScript program is refused too. A file never imports a module: that takes
  ``--import`` or ``custom_imports``, which only the user gives. Options are read by a YAML reader that knows plain
  values only (``config.yaml_reader``).
* **Take all memory or time when it is read.** An archive that unpacks to far more than it is, views that repeat the
  same bytes, weights that claim more masks than the file can hold: ``files`` and ``weights`` compare what is claimed
  with the file's size before memory is taken.
* **Take all memory or time when its network is built.** The options in a file say how large a network is:
  ``bounds`` bounds it by the weights that are really there, and the images that it makes.
* **Be damaged, or lie about itself.** ``bitmask`` checks packed weights' types, shapes and lengths before it fills in
  zeros; ``weights`` takes plain tensors on the CPU only. All that does not fit is one line (``UserError``).

Not guarded against: weights that restore badly, and what a module that the user imports does.

This package knows tensors, files and errors; it builds no network.
"""
