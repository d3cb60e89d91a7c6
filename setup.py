"""Build of bark_accel._C: one torch extension, plus one object per CPU instruction set."""

import platform
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "bark_accel: torch must be installed before the build (for example `pip install torch`), "
        "and the build must see it: `pip install --no-build-isolation .`"
    ) from error

ROOT = Path(__file__).parent
OPTIMISE = ["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall"]
# at::parallel_for is a header template and stays serial without -fopenmp. Not on the link line: GOMP_* must
# come from the OpenMP runtime torch brought along, never from a second one.
OPENMP = ["-fopenmp"] if platform.system() == "Linux" else []
# -Wno-maybe-uninitialized: GCC 12's own AVX-512 headers trip it.
KERNEL_FLAGS = ["-std=c++17", "-fPIC", "-fno-exceptions", "-Wno-psabi", "-Wno-maybe-uninitialized"]
X86 = platform.machine().lower() in {"x86_64", "amd64"}
ISA_FLAGS: dict[str, list[str]] = {"generic": []}
if X86:
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ]
    ISA_FLAGS["avx512_vnni"] = [*ISA_FLAGS["avx512"], "-mavx512vnni"]


class BuildWithIsas(BuildExtension):
    """Compiles the torch-free kernels once per instruction set; setuptools has no per-source flags."""

    def build_extensions(self) -> None:
        objects = []
        for isa, flags in ISA_FLAGS.items():
            objects += self.compiler.compile(
                [f"csrc/cpu/isa_{isa}.cpp"],
                output_dir=self.build_temp,
                extra_postargs=[*OPTIMISE, *KERNEL_FLAGS, *flags],
            )
        for extension in self.extensions:
            extension.extra_objects = [*extension.extra_objects, *objects]
        super().build_extensions()


setup(
    ext_modules=[
        CppExtension(
            "bark_accel._C",
            [
                "csrc/ops.cpp",
                "csrc/cpu/isa.cpp",
                "csrc/cpu/fused_sample.cpp",
                "csrc/cpu/lazy_noise.cpp",
                "csrc/cpu/int16_attention.cpp",
                "csrc/cpu/int16_linear.cpp",
                "csrc/cpu/codebook_embedding_sum.cpp",
                "csrc/cpu/static_cache_attention.cpp",
                "csrc/cpu/decode_step.cpp",
                "csrc/cpu/barrier.cpp",
            ],
            depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.h"))],
            define_macros=[("BARK_ACCEL_X86", "1")] if X86 else [],
            extra_compile_args={"cxx": [*OPTIMISE, *OPENMP]},
        )
    ],
    cmdclass={"build_ext": BuildWithIsas},
)
