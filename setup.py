"""Build of bark_accel/_C.so: the ops on torch's stable C interface, free of Python; one object per instruction set."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import setup

ROOT = Path(__file__).parent

if platform.system() == "Windows":
    raise SystemExit(
        "bark_accel: expected Linux or macOS, got Windows; install it in WSL2 (`wsl --install`), "
        "as docs/windows.md says"
    )
if (ROOT / "patches").is_file():
    raise SystemExit(
        "bark_accel: expected `patches` to be a link to bark_accel/patches, got a text file, as git writes it where "
        "symbolic links are off: `git config core.symlinks true`, then `git checkout -- patches` (docs/windows.md)"
    )

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # of a setuptools that builds in place only
    bdist_wheel = setuptools.Command

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError as error:
    raise SystemExit(
        "bark_accel: torch must be installed before the build (for example `pip install torch`), "
        "and the build must see it: `pip install --no-build-isolation .`"
    ) from error

# 2.11. What later versions added to the stable interface does not compile.
OLDEST_TORCH = "0x020b000000000000"
OPTIMISE = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall"]
MACOS = platform.system() == "Darwin"
if MACOS:  # a Python for two processors would ask for both, and torch is for one
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


def is_clang() -> bool:
    """Whether $CXX, or else the system's compiler, is clang."""
    command = [*shlex.split(os.environ.get("CXX") or "c++"), "--version"]
    try:
        return "clang" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return MACOS


CLANG = is_clang()
# -Wno-maybe-uninitialized, -Wno-uninitialized: GCC 12's own AVX-512 headers trip them.
KERNEL_FLAGS = ["-fPIC", "-fno-exceptions", "-Wno-psabi"]
KERNEL_FLAGS += [] if CLANG else ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]


def libomp_headers() -> Path | None:
    """The folder of omp.h: BARK_ACCEL_LIBOMP's (a prefix; 0: none wanted), Homebrew's, or this environment's."""
    given = os.environ.get("BARK_ACCEL_LIBOMP")
    if given == "0":
        return None
    prefixes = [given] if given else ["/opt/homebrew/opt/libomp", "/usr/local/opt/libomp", sys.prefix]
    brew = shutil.which("brew")
    if brew and not given:
        asked = subprocess.run([brew, "--prefix", "libomp"], check=False, capture_output=True, text=True)
        prefixes[:0] = [asked.stdout.strip()] if asked.returncode == 0 else []
    for prefix in prefixes:
        if (Path(prefix) / "include" / "omp.h").is_file():
            return Path(prefix) / "include"
    if given:
        raise SystemExit(f"bark_accel: BARK_ACCEL_LIBOMP: expected a folder with include/omp.h, got {given}")
    return None


def openmp_flags() -> list[str]:
    """Flags of the compiler alone: the runtime must be the one that torch brought along, never a second one."""
    if not MACOS:
        return ["-fopenmp"]
    headers = libomp_headers() if torch.backends.openmp.is_available() else None
    if headers is None:
        why = "omp.h was not found (`brew install libomp`, or BARK_ACCEL_LIBOMP=<prefix>)"
        why = why if torch.backends.openmp.is_available() else "this torch has no OpenMP"
        print(f"bark_accel: building kernels of ONE THREAD: {why}")
        return []
    return ["-Xpreprocessor", "-fopenmp", f"-I{headers}"]


OPENMP = openmp_flags()
X86 = platform.machine().lower() in {"x86_64", "amd64"}
ARM = platform.machine().lower() in {"aarch64", "arm64"}
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
    "-mprefer-vector-width=512",
]
X86_FLAGS = {
    "avx2": AVX2,
    "avx_vnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "avx512_vnni": [*AVX512, "-mavx512vnni"],
}
ARM_FLAGS = {"neon": [], "neon_dotprod": ["-march=armv8.2-a+dotprod"]}
# An object of kernels for each.
ISA_FLAGS: dict[str, list[str]] = {"generic": [], **(X86_FLAGS if X86 else ARM_FLAGS if ARM else {})}


# The .cu files know nothing of torch, and the runtime is linked in: one build loads with and without torch's CUDA.
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
# Turing to Blackwell, and PTX of PTX_ARCH for what comes. BARK_ACCEL_CUDA_ARCHS="80 90" builds fewer, in less time.
CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
PTX_ARCH = "90"


# Objects of the .cu files, kept between builds: a machine without nvcc can link those that another one made
# (BARK_ACCEL_CUDA_OBJECTS, with CUDA_HOME naming the headers and the static runtime).
CUDA_OBJECTS = Path(os.environ.get("BARK_ACCEL_CUDA_OBJECTS", ROOT / "build" / "cuda"))


def find_cuda() -> Path | None:
    """The CUDA toolkit, where its kernels are to be built: torch has CUDA, or BARK_ACCEL_CUDA=1 asks (0: never)."""
    wanted = os.environ.get("BARK_ACCEL_CUDA")
    if wanted == "0" or (wanted != "1" and torch.version.cuda is None):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc")
    beside_nvcc = Path(nvcc).resolve().parent.parent if nvcc else Path(home)
    for candidate in (Path(home), beside_nvcc):
        if (candidate / "include" / "cuda_runtime_api.h").is_file():
            return candidate
    message = f"no toolkit (include/cuda_runtime_api.h) was found in {home} or beside an nvcc on the PATH"
    if wanted == "1":
        raise SystemExit(f"bark_accel: BARK_ACCEL_CUDA=1 asks for the CUDA kernels, but {message}; set CUDA_HOME")
    print(f"bark_accel: torch has CUDA, but {message}; building without the CUDA kernels")
    return None


CUDA_HOME = find_cuda()


def nvcc_of(home: Path) -> str | Path | None:
    """The compiler: headers may stand without theirs, as those of torch's own packages do."""
    return home / "bin" / "nvcc" if (home / "bin" / "nvcc").is_file() else shutil.which("nvcc")


def cuda_archs(home: Path) -> list[str]:
    """Architectures to build for: those asked for, else all of CUDA_ARCHS that this nvcc knows."""
    wanted = os.environ.get("BARK_ACCEL_CUDA_ARCHS", "").split()
    unknown = [arch for arch in wanted if not arch.isdigit()]
    if unknown:
        raise SystemExit(f"bark_accel: BARK_ACCEL_CUDA_ARCHS: expected numbers such as '80 90', got {' '.join(wanted)}")
    nvcc = nvcc_of(home)
    if wanted or nvcc is None:
        return wanted or list(CUDA_ARCHS)
    known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    return [arch for arch in CUDA_ARCHS if f"compute_{arch}" in known]


def gencode(archs: list[str]) -> list[str]:
    """Options of nvcc for machine code of these architectures, and PTX where PTX_ARCH is one of them."""
    codes = ((arch, f"[sm_{arch},compute_{arch}]" if arch == PTX_ARCH else f"sm_{arch}") for arch in archs)
    return [option for arch, code in codes for option in ("-gencode", f"arch=compute_{arch},code={code}")]


def archs_text(archs: list[str]) -> str:
    """What the library says of itself."""
    return " ".join([f"sm_{arch}" for arch in archs] + [f"compute_{PTX_ARCH}"] * (PTX_ARCH in archs))


def cuda_objects(home: Path) -> list[str]:
    """Objects of the .cu files, compiled where they are missing or older than a source."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    objects = [CUDA_OBJECTS / f"{source.stem}.o" for source in sources]
    if "BARK_ACCEL_CUDA_OBJECTS" in os.environ:
        missing = [str(built) for built in objects if not built.is_file()]
        if missing:
            raise SystemExit(f"bark_accel: BARK_ACCEL_CUDA_OBJECTS: expected {', '.join(missing)}, found none")
        return [str(built) for built in objects]
    CUDA_OBJECTS.mkdir(parents=True, exist_ok=True)
    headers = [
        *(ROOT / "csrc" / "cuda").glob("*.*h"),
        *(ROOT / "csrc" / "kernels" / f"{name}.h" for name in ("params", "sample_rules")),
        ROOT / "setup.py",
    ]
    changed = max(path.stat().st_mtime for path in headers)
    nvcc, options = nvcc_of(home), gencode(cuda_archs(home))
    if nvcc is None:
        raise SystemExit(f"bark_accel: expected nvcc in {home / 'bin'} or on the PATH for the CUDA kernels, found none")

    said = CUDA_OBJECTS / "archs"
    if not said.is_file() or said.read_text() != " ".join(options):
        changed = float("inf")

    def compile_one(source: Path, built: Path) -> None:
        if not built.is_file() or built.stat().st_mtime <= max(changed, source.stat().st_mtime):
            subprocess.run([nvcc, *NVCC_FLAGS, *options, "-c", source, "-o", built], check=True)

    in_parallel(compile_one, sources, objects)
    said.write_text(" ".join(options))
    return [str(built) for built in objects]


def in_parallel(function, *arguments) -> list:
    """As `map`, MAX_JOBS calls at a time (one where it is not set)."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or 1)) as pool:
        return list(pool.map(function, *arguments))


class BuildWithIsas(BuildExtension):
    """Compiles the torch-free kernels once per instruction set; setuptools has no per-source flags."""

    def get_ext_filename(self, fullname: str) -> str:
        """No name of a Python module: the library has no Python in it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extensions(self) -> None:
        def compile_isa(isa: str) -> list[str]:
            return self.compiler.compile(
                [f"csrc/cpu/isa_{isa}.cpp"],
                output_dir=self.build_temp,
                extra_postargs=[*OPTIMISE, *KERNEL_FLAGS, *ISA_FLAGS[isa]],
            )

        objects = [built for isa in in_parallel(compile_isa, ISA_FLAGS) for built in isa]
        if CUDA_HOME is not None:
            objects += cuda_objects(CUDA_HOME)
        for extension in self.extensions:
            extension.extra_objects = [*extension.extra_objects, *objects]
        super().build_extensions()


class WheelForAnyPython(bdist_wheel):
    """The library calls neither Python nor what torch changes between versions."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def cuda_options() -> dict[str, list]:
    """What the extension needs beside the objects of the .cu files."""
    if CUDA_HOME is None:
        return {"sources": [], "macros": [], "include_dirs": [], "library_dirs": [], "libraries": []}
    return {
        "sources": [f"csrc/cuda/{name}.cpp" for name in ("bind", "bind_draws", "bind_tokens")],
        "macros": [("BARK_ACCEL_CUDA_ARCHS", f'"{archs_text(cuda_archs(CUDA_HOME))}"')],
        "include_dirs": [str(CUDA_HOME / "include")],
        "library_dirs": [str(CUDA_HOME / name) for name in ("lib64", "lib") if (CUDA_HOME / name).is_dir()],
        "libraries": ["cudart_static", "rt", "dl", "pthread"],
    }


CUDA = cuda_options()


class WithoutProject(setuptools.Distribution):
    """For setuptools that cannot read pyproject.toml: enough for an extension in place (`make gpu`)."""

    def parse_config_files(self, filenames=None, ignore_option_errors=False) -> None:
        super().parse_config_files([], ignore_option_errors)


# Its license expression needs setuptools 77, as pyproject.toml says; torch's own index brings older ones along.
TOO_OLD = int(setuptools.__version__.partition(".")[0]) < 77 and "build_ext" in sys.argv


setup(
    ext_modules=[
        setuptools.Extension(
            "bark_accel._C",
            [
                "csrc/c_interface.cpp",
                "csrc/checks.cpp",
                "csrc/cpu/isa.cpp",
                "csrc/cpu/fused_sample.cpp",
                "csrc/cpu/generator_state.cpp",
                "csrc/cpu/float32_attention.cpp",
                "csrc/cpu/float32_conv.cpp",
                "csrc/cpu/float32_linear.cpp",
                "csrc/cpu/int16_attention.cpp",
                "csrc/cpu/int_linear.cpp",
                "csrc/cpu/int16_linear.cpp",
                "csrc/cpu/int8_linear.cpp",
                "csrc/cpu/lstm_layer.cpp",
                "csrc/cpu/packed_linear.cpp",
                "csrc/cpu/codebook_embedding_sum.cpp",
                "csrc/cpu/static_cache_attention.cpp",
                "csrc/cpu/decode_step.cpp",
                "csrc/cpu/barrier.cpp",
                "csrc/cpu/step_team.cpp",
                "csrc/cpu/team_tuner.cpp",
                *CUDA["sources"],
            ],
            include_dirs=[*include_paths(), *CUDA["include_dirs"]],
            library_dirs=[*library_paths(), *CUDA["library_dirs"]],
            libraries=["torch_cpu", *CUDA["libraries"]],
            depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.*h"))],
            define_macros=[
                ("TORCH_TARGET_VERSION", OLDEST_TORCH),
                *([("BARK_ACCEL_X86", "1")] if X86 else [("BARK_ACCEL_ARM", "1")] if ARM else []),
                *CUDA["macros"],
            ],
            extra_compile_args={"cxx": [*OPTIMISE, *OPENMP]},
            # macOS looks for torch's libraries by the path of who needs them; elsewhere they are there already.
            extra_link_args=[f"-Wl,-rpath,{path}" for path in library_paths()] if MACOS else [],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildWithIsas, "bdist_wheel": WheelForAnyPython},
    distclass=WithoutProject if TOO_OLD else setuptools.Distribution,
)
