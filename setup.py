"""Builds ``isp_distill/_C.abi3.so``, the CPU kernels: one library for every torch from 2.10 on.

Where nvcc is found it builds ``isp_distill/_cuda.abi3.so`` as well, from ``csrc/cuda``: a library
of its own, since one that needs libtorch_cuda cannot be loaded where torch has none.

It is compiled against torch's headers only (the LibTorch stable ABI and Python's limited API);
torch is never imported here. Where there is no compiler, no headers, or a compilation fails, the
installation goes on in pure Python and says so in one line, unless
``ISP_DISTILL_REQUIRE_EXTENSION=1``.

How a source file is compiled follows from its name:

* ``csrc/cpu/**/*_kernel.cpp`` once for each instruction set in ``INSTRUCTION_SETS``, with the macro
  ``ISP_DISTILL_ISA`` set to its name. Everything in such a file lives in the namespace
  ``isp_distill::ISP_DISTILL_ISA``, and it includes only ``simd.h`` and headers that define no
  inline function outside that namespace, so that the linker can never mix instruction sets.
* ``csrc/cpu/**/*_exact_kernel.cpp`` are kernels whose result must be the same bits on every
backend:
  the compiler may not fuse their multiplications and additions.
* every other ``csrc/cpu/**/*.cpp`` once, for the baseline of the architecture.

Environment: ``ISP_DISTILL_TORCH`` names the torch package whose headers are used, ``CXX`` the
compiler, ``MAX_JOBS`` how many files are compiled at a time (default: one for each core),
``ISP_DISTILL_BUILD_EXTENSION=0`` skips both libraries.

``ISP_DISTILL_CROSS=aarch64-linux-gnu`` builds the CPU library for another machine, with that
triple's g++ (or ``CXX``): give ``build_ext`` a ``--build-lib`` of its own. torch's headers are the
same on every machine, and its library is only named, so the torch that is installed here will do.

The CUDA library: ``CUDA_HOME`` names the toolkit (else the nvcc on PATH),
``ISP_DISTILL_BUILD_CUDA=0`` skips it, ``ISP_DISTILL_CUDA_ARCHITECTURES`` chooses what it is
compiled for (default "80;86;89;90;100", the last one as PTX too): each costs time. Any torch will
do, one without CUDA too: it takes torch's headers for C, and the name of its library.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
REQUIRED = os.environ.get("ISP_DISTILL_REQUIRE_EXTENSION") == "1"
JOBS = int(os.environ.get("MAX_JOBS") or 0)  # 0: as many as there are cores
WANTED = os.environ.get("ISP_DISTILL_BUILD_EXTENSION", "1") != "0"
#: The kernels of Triton lie beside the package, in kernels/.
PACKAGES = [
    *find_packages(str(ROOT), include=["isp_distill", "isp_distill.*"]),
    "isp_distill.kernels",
    *(f"isp_distill.kernels.{name}" for name in find_packages(str(ROOT / "kernels"))),
]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

FLAGS = [
    *("-std=c++20", "-O3", "-fvisibility=hidden", "-fPIC"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
if not FREE_THREADED:
    FLAGS.append("-DPy_LIMITED_API=0x030a0000")

CUDA_FLAGS = [
    *("-std=c++20", "-O3", "-Werror", "all-warnings", "--threads", str(JOBS)),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"),
    *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"),
]
ARCHITECTURES = os.environ.get("ISP_DISTILL_CUDA_ARCHITECTURES") or "80;86;89;90;100"

#: The triple of another machine to compile for, or "".
CROSS = os.environ.get("ISP_DISTILL_CROSS", "")
MACHINE = (CROSS.split("-")[0] or platform.machine()).lower()

#: On aarch64 the baseline has NEON, which csrc/cpu/simd.h uses.
INSTRUCTION_SETS = {"generic": []}
if MACHINE in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ]


def compiler():
    """The C++ compiler's command, or None."""
    named = shlex.split(os.environ.get("CXX") or "")
    if CROSS:
        candidates = [named or [f"{CROSS}-g++"]]
    else:
        named = named or shlex.split(sysconfig.get_config_var("CXX") or "")
        candidates = [named, ["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    return None


def cuda_toolkit():
    """The directory of a CUDA toolkit with nvcc, or None."""
    found = os.environ.get("CUDA_HOME") or shutil.which("nvcc")
    if not found:
        return None
    path = Path(found)
    for home in (path, path.resolve().parent.parent, Path("/usr/local/cuda")):
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return home
    return None


def architecture_flags():
    """nvcc's options for each architecture, and the last one's PTX for those to come."""
    numbers = [int(x) for x in re.split(r"[;, ]+", ARCHITECTURES.strip())]
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    return [*flags, f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"]


def torch_package():
    """The directory of a torch that is new enough, found without importing it, or None."""
    folders = []
    if named := os.environ.get("ISP_DISTILL_TORCH"):
        folders.append(Path(named))
    spec = find_spec("torch")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent)
    # Under pip's build isolation sys.path hides the environment that is being installed into, but
    # sysconfig still names it, and the torch in it is the one that the library will be used with.
    for name in ("purelib", "platlib"):
        site = Path(sysconfig.get_paths()[name])
        folders.append(site / "torch")
        for pth in sorted(site.glob("*.pth")):
            lines = pth.read_text(errors="replace").splitlines()
            folders += [site / line / "torch" for line in lines if line and "import" not in line]
    for folder in folders:
        header = folder / "include" / "torch" / "headeronly" / "version.h"
        if header.is_file():
            numbers = re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", header.read_text())
            if tuple(map(int, numbers[:2])) >= OLDEST_TORCH:
                return folder
    return None


def without_paths(torch):
    """Options with which no path of this machine gets into the messages of failed checks."""
    # Compilers write the resolved path of a system header.
    folders = {torch / "include", (torch / "include").resolve(), ROOT}
    return [f"-ffile-prefix-map={folder}/=" for folder in sorted(folders)]


def object_name(source):
    """csrc/cpu/render/call.cpp as render-call: files of two operations share names."""
    return "-".join(source.with_suffix("").parts[2:])


def give_up(reason, device="CPU"):
    """Say in one line that the installation has no compiled kernels, or fail where it must."""
    if REQUIRED:
        raise SystemExit(f"isp-distill: ISP_DISTILL_REQUIRE_EXTENSION=1, but {reason}")
    print(
        f"isp-distill: installing without the compiled {device} kernels: {reason}", file=sys.stderr
    )


class BuildKernels(build_ext):
    """Compiles each source with its own flags, in parallel; a failure is not fatal by default."""

    def finalize_options(self):
        super().finalize_options()
        # Both libraries at once: much of what nvcc does for a file keeps one core busy.
        self.parallel = self.parallel or len(self.extensions or ()) or None

    def build_extension(self, ext):
        cuda = ext.name.endswith("._cuda")
        try:
            (self.compile_and_link_cuda if cuda else self.compile_and_link)(ext)
        except (subprocess.CalledProcessError, OSError) as error:
            output = (getattr(error, "stderr", None) or str(error)).strip()
            if REQUIRED:
                print(output, file=sys.stderr)
            errors = [line for line in output.splitlines() if "error" in line]
            status = getattr(error, "returncode", None)
            first = errors[0] if errors and status is not None else f"exit status {status}"
            reason = f"compiling them failed: {str(error) if status is None else first[:300]}"
            give_up(reason, "CUDA" if cuda else "CPU")

    def get_outputs(self):
        # A library that could not be built must not be listed as installed.
        return [path for path in super().get_outputs() if os.path.exists(path)]

    def copy_extensions_to_source(self):
        built = [e for e in self.extensions if os.path.exists(self.get_ext_fullpath_in_build(e))]
        every, self.extensions = self.extensions, built
        super().copy_extensions_to_source()
        self.extensions = every

    def get_ext_fullpath_in_build(self, ext):
        filename = self.get_ext_filename(self.get_ext_fullname(ext.name))
        return os.path.join(self.build_lib, filename)

    def compile_and_link(self, ext):
        torch = torch_package()
        if torch is None:
            give_up("torch >= 2.10, whose headers they need, was not found")
            return
        command = compiler()
        folder = Path(self.build_temp) / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        python = sysconfig.get_paths()
        includes = [f"-I{ROOT / 'csrc'}", f"-isystem{torch / 'include'}"]
        includes += [f"-isystem{python[name]}" for name in ("include", "platinclude")]
        # Under a virtual environment these two differ from where Python.h is.
        includes += [f"-isystem{p}" for p in self.include_dirs]
        flags = [*FLAGS, *without_paths(torch), *shlex.split(os.environ.get("CXXFLAGS", ""))]
        jobs = []
        for source in map(Path, ext.sources):
            kernel = source.stem.endswith("_kernel")
            variants = INSTRUCTION_SETS if kernel else {"": []}
            rounding = ["-ffp-contract=off"] if source.stem.endswith("_exact_kernel") else []
            for name, extra in variants.items():
                target = folder / f"{object_name(source)}{'-' + name if name else ''}.o"
                if name:
                    extra = [*extra, *rounding, f"-DISP_DISTILL_ISA={name}"]
                jobs.append(
                    [*command, *flags, *extra, *includes, "-c", str(source), "-o", str(target)]
                )
        # The longest compilations first.
        jobs.sort(key=lambda job: "avx" not in " ".join(job))
        with ThreadPoolExecutor(JOBS or os.cpu_count() or 1) as pool:
            list(pool.map(self.run_compiler, jobs))
        library = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(library), exist_ok=True)
        objects = [job[-1] for job in jobs]
        link = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [
            "-shared", "-Wl,--as-needed"
        ]  # fmt: skip
        # torch's own directory is not recorded: isp_distill imports torch before this library, and
        # the loader then takes the libtorch_cpu that is already there.
        if CROSS:
            self.link_empty_library(folder / "libtorch_cpu.so")
            link += ["-Wl,--no-as-needed", f"-L{folder}", "-ltorch_cpu"]
        else:
            link += [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        self.run_compiler([*command, *objects, *link, "-o", library])

    def compile_and_link_cuda(self, ext):
        torch, toolkit = torch_package(), cuda_toolkit()
        if torch is None:
            give_up("torch >= 2.10, whose headers they need, was not found", "CUDA")
            return
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        python = sysconfig.get_paths()
        includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include")]
        for path in (python["include"], python["platinclude"], *self.include_dirs):
            includes += ["-isystem", str(path)]
        nvcc = [str(toolkit / "bin" / "nvcc"), *CUDA_FLAGS, *architecture_flags()]
        nvcc += ["-Xcompiler", ",".join(without_paths(torch))]
        if not FREE_THREADED:
            nvcc.append("-DPy_LIMITED_API=0x030a0000")
        objects = []
        # One after another: nvcc compiles the architectures of one file in parallel.
        for source in map(Path, ext.sources):
            objects.append(str(folder / f"{object_name(source)}.o"))
            self.run_compiler([*nvcc, *includes, "-c", str(source), "-o", objects[-1]])
        # torch without CUDA has no libtorch_cuda.
        self.link_empty_library(folder / "libtorch_cuda.so")
        library = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(library), exist_ok=True)
        link = ["-shared", "-Wl,--no-as-needed", f"-L{folder}", "-ltorch_cuda", "-Wl,--as-needed"]
        link += [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        # The runtime goes into the library: it must not depend on which one torch was built with.
        link += [f"-L{toolkit / 'lib64'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        self.run_compiler([*compiler(), *objects, *link, "-o", library])

    def link_empty_library(self, path):
        """A library of a name and nothing in it, to link against.

        The loader will take the one of that name of the torch that is in the process.
        """
        soname = f"-Wl,-soname,{path.name}"
        self.run_compiler([*compiler(), "-shared", soname, "-x", "c", "/dev/null", "-o", str(path)])

    def run_compiler(self, command):
        if self.verbose:
            print(shlex.join(command))
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def extensions():
    if not WANTED:
        return []
    if sys.platform == "win32":
        give_up("they are built with GCC or Clang, on Linux and macOS")
        return []
    if compiler() is None:
        wanted = f"{CROSS}-g++" if CROSS else "g++ or clang++"
        give_up(f"there is no C++ compiler (set CXX, or install {wanted})")
        return []
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cpu").rglob("*.cpp"))
    found = [Extension("isp_distill._C", sources, py_limited_api=not FREE_THREADED)]
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cuda").rglob("*.cu"))
    wanted = os.environ.get("ISP_DISTILL_BUILD_CUDA", "1") != "0" and sys.platform == "linux"
    wanted = wanted and not CROSS
    if sources and wanted and cuda_toolkit() is not None:
        found.append(Extension("isp_distill._cuda", sources, py_limited_api=not FREE_THREADED))
    return found


modules = extensions()
wheel = {} if FREE_THREADED or not modules else {"py_limited_api": "cp310"}
if CROSS and modules:
    wheel["plat_name"] = f"linux_{MACHINE}"
setup(
    packages=PACKAGES,
    ext_modules=modules,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": wheel},
    # Only where the headers are nowhere to be found does pip bring torch into the build.
    setup_requires=["torch>=2.10"] if modules and torch_package() is None else [],
)
