"""Builds the compiled search core. Everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# One wheel serves every Python from 3.11 on, except for those without the global lock, which have no stable ABI.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
EXPORTS = "runtime/gallery/core/exports.map"

CORE = Extension(
    "chan_rt.runtime.gallery._core",
    sources=sorted(glob("runtime/gallery/core/*.cpp")),
    depends=[*sorted(glob("runtime/gallery/core/*.h")), EXPORTS],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED else [],
    # No fused multiply-add that the code does not ask for, so that all instruction sets compute the same bits. Each
    # file names its own instruction set, and module.cpp chooses among them where the code runs: no -march here.
    # Python's own flags come first, with -fwrapv: GCC 12.2 makes wrong code of pool_lanes.h for AVX-512 with that.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fno-wrapv",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-pthread",
        "-g0",
    ],
    extra_link_args=["-pthread", f"-Wl,--version-script={EXPORTS}"],
    language="c++",
    py_limited_api=LIMITED,
    optional=True,
)


class BuildCore(build_ext):
    """Says what is lost where the core cannot be compiled; it is optional, so the installation goes on."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the core."""
        try:
            super().build_extension(ext)
        except Exception as error:
            raise CompileError(
                f"{str(error).rstrip('.')}. The package is installed without its compiled search core: searches return "
                "the same results, but are slower. To have it, install a C++17 compiler (Debian: apt install g++) and "
                "install this package again."
            ) from error


setup(
    script_name="setup.py",  # so that this file is not taken for a module of the package
    ext_modules=[CORE],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
