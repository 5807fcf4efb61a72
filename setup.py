"""Compiles the N:M kernels, where a C++ compiler is there, and packs the example options; the rest is in setup.cfg."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

CSRC = Path('basicsr_classpruning/kernels/csrc')
LIBRARY = 'libclasspruning_kernels.so'
FLAGS = ['-O3', '-fPIC', '-std=c++17', '-fvisibility=hidden', '-Wall', '-Wextra', '-Wno-psabi']
AVX2 = ['-mavx2', '-mfma']
AVX512 = ['-mavx512f', '-mavx512vl', '-mavx512dq', '-mfma']
ROUNDED = ['-ffp-contract=off']  # every product and sum of floats, as PyTorch does it
# One binary for all processors: each engine has its own instructions, and the program chooses at run time.
SOURCES = {
    'dispatch.cpp': [],
    'jobs.cpp': [],
    'pack.cpp': [],
    'pointwise.cpp': [],
    'threads.cpp': [],
    'engine_avx2.cpp': AVX2,
    'engine_wide.cpp': AVX2,
    'engine_avx512.cpp': AVX512,
    'int8_dispatch.cpp': [],
    'int8_pack.cpp': [],
    'int8_avx2.cpp': [*AVX2, *ROUNDED],
    'int8_avxvnni.cpp': [*AVX2, *ROUNDED],
    'int8_avx512.cpp': [*AVX512, '-mavx512bw', '-mavx512vnni', *ROUNDED],
}


class BuildKernels(build_ext):
    """Compiles a plain shared library (it is loaded with ctypes, not imported)."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split('.')[:-1]) / LIBRARY)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        try:
            self._compile(ext)
        except Exception as error:
            print(
                f'classpruning: the N:M kernels were NOT compiled ({error}). The package works without them, but '
                'sparsity saves no time. Install a C++ compiler (g++ >= 9) and install the package again.',
                file=sys.stderr,
            )

    def _compile(self, ext: Extension) -> None:
        if sys.platform != 'linux' or platform.machine() not in ('x86_64', 'AMD64'):
            raise RuntimeError(f'they are written for Linux on x86-64, not {sys.platform} on {platform.machine()}')
        objects = []
        for name, flags in SOURCES.items():
            objects += self._object(name, flags, ext)
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=['-pthread'], target_lang='c++')

    def _object(self, name: str, flags: list[str], ext: Extension) -> list[str]:
        source, tries = str(CSRC / name), [flags]
        if name == 'int8_avxvnni.cpp':  # g++ 11 and newer know it
            tries.insert(0, [*flags, '-mavxvnni'])
        for i, used in enumerate(tries):
            try:
                return self.compiler.compile(
                    [source], output_dir=self.build_temp, extra_postargs=[*FLAGS, *used], depends=ext.depends
                )
            except CompileError:
                if i + 1 == len(tries):
                    raise
        return []


class PackExamples(build_py):
    """Puts the repository's example options, which stand outside the package, into it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in sorted(Path('options').glob('*/*.yml')):
                target = self._packed(source)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        examples = [str(self._packed(path)) for path in sorted(Path('options').glob('*/*.yml'))]
        return [*super().get_outputs(include_bytecode), *examples]

    def _packed(self, source: Path) -> Path:
        return Path(self.build_lib, 'basicsr_classpruning', source)


kernels = Extension(
    'basicsr_classpruning.kernels._kernels',
    sources=[str(CSRC / name) for name in SOURCES],
    depends=[str(path) for path in sorted(CSRC.glob('*.h'))],
    optional=True,
)
setup(ext_modules=[kernels], cmdclass={'build_ext': BuildKernels, 'build_py': PackExamples})
