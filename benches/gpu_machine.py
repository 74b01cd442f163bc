"""What a machine has for CUDA: driver, NVRTC, headers; and what a process takes of the GPU."""
import ctypes
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

# What the kernels that burn generates include: half types, tensor cores, barriers.
KERNEL = b"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <cooperative_groups.h>
#include <cuda/barrier>
extern "C" __global__ void probe(__nv_bfloat16 *x) { x[0] = __float2bfloat16(1.0f); }
"""
WHEELS = "nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
# Of CUDA 12, where nvcc's has what became crt.
WHEELS_12 = "nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12"
# The first that has cuda/barrier; any compiler of CUDA 12 takes it.
CCCL_12 = "'nvidia-cuda-cccl-cu12>=12.6'"
NVRTC_NAMES = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]
# Any version of a driver's or an older generation runs there.
CUBLAS_WHEELS = {13: "'nvidia-cublas==13.*'", 12: "'nvidia-cublas-cu12==12.*'"}
# CUDA versions that the bindings know (cudarc 0.19).
KNOWN = [12000, 12010, 12020, 12030, 12040, 12050, 12060, 12080, 12090, 13000, 13010, 13020, 13030, 13040]


class Missing(Exception):
    """What is missing or too old, and how to mend it."""

    def __init__(self, what, fix):
        super().__init__(f"error: {what}\n  help: {fix}")


def version(number):
    return f"{number // 1000}.{number % 1000 // 10}"


def wheels(number):
    """What to install in place of the toolkit of that version."""
    is_12 = number < 13000
    parts = [f"'{name}=={version(number)}.*'" for name in (WHEELS_12 if is_12 else WHEELS).split()]
    return " ".join([*parts, *[CCCL_12] * is_12, CUBLAS_WHEELS[min(number // 1000, 13)]])


def driver():
    """CUDA version of the driver, as 1000 · major + 10 · minor."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise Missing(
            f"no NVIDIA driver: {e}",
            "install it (Debian: `apt-get install nvidia-driver`; in a container start it with `--gpus all`), or `--device cpu`",
        )
    found = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(found))
    count, code = ctypes.c_int(0), library.cuInit(0)
    if code == 0:
        code = library.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        raise Missing(
            f"the driver (CUDA {version(found.value)}) finds no GPU (code {code})",
            "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES",
        )
    if found.value < 12000:
        raise Missing(
            f"the driver is for CUDA {version(found.value)}, and 12.0 is the oldest that works",
            "install a newer driver (525 or newer; 580 or newer for CUDA 13)",
        )
    return found.value


def candidates():
    """Folders that may hold a CUDA toolkit, or the parts of one that Python wheels bring."""
    named = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME", "CUDA_ROOT")]
    folders = [pathlib.Path(name) for name in named if name]
    compiler = shutil.which("nvcc")
    folders += [pathlib.Path(compiler).resolve().parents[1]] if compiler else []
    numbers = lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)]
    newest_first = sorted(pathlib.Path("/usr/local").glob("cuda-*"), key=numbers, reverse=True)
    folders += [pathlib.Path("/usr/local/cuda"), pathlib.Path("/opt/cuda"), *newest_first]
    for site in map(pathlib.Path, sys.path):
        wheels = site / "nvidia"
        if wheels.is_dir():
            folders += [wheels / "cu13", *sorted(wheels.glob("cu1[0-9]")), *sorted(wheels.glob("cuda_*")), wheels / "cublas"]
    return [folder for i, folder in enumerate(folders) if folder.is_dir() and folder not in folders[:i]]


def libraries(names, folders):
    """What loads of `names`, and the folder to look for it in: none where the loader finds it by
    itself."""
    places = [folder / sub for folder in folders for sub in ("lib64", "lib")]
    for place in [None, *places]:
        for name in names:
            try:
                yield ctypes.CDLL(str(place / name) if place else name), place
            except OSError:
                pass


def file_of(library):
    """The path by which the loader found a library."""
    # The begin of glibc's `link_map`: an address, and the path.
    entry, link_map = ctypes.POINTER(ctypes.c_char_p * 2)(), 2
    ctypes.CDLL(None).dlinfo(ctypes.c_void_p(library._handle), link_map, ctypes.byref(entry))
    return entry.contents[1].decode()


def nvrtc_version(nvrtc):
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return 1000 * major.value + 10 * minor.value


def nvrtc_library(folders, driver_version):
    """The first of `libraries` that is not too new for the driver, else the first; there must be one."""
    found, folder = None, None
    for nvrtc, place in libraries(NVRTC_NAMES, folders):
        fits = nvrtc_version(nvrtc) <= (driver_version or math.inf)
        if fits or not found:
            found, folder = nvrtc, place
        if fits:
            break
    if found is None:
        newest = driver_version or KNOWN[-1]
        raise Missing(
            "no NVRTC, which compiles the GPU's kernels",
            f"install the CUDA toolkit {version(newest)} or older, or `{sys.executable} -m pip install {wheels(newest)}`",
        )
    # NVRTC asks the loader for this one, and not every NVRTC tells it to look beside itself.
    for builtins in folder.glob("libnvrtc-builtins.so.*") if folder else []:
        ctypes.CDLL(str(builtins))
    return found, folder


def compile_probe(nvrtc, include, architecture):
    """The PTX of a small kernel with the headers of `include`, or none and the compiler's log."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), KERNEL, b"probe.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}", f"--include-path={include}", f"--include-path={include / 'cccl'}"]
    options = [option.encode() for option in options]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if code == 0:
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        return ptx.raw, None
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    lines = log.value.decode(errors="replace").splitlines()
    return None, next((line for line in lines if "error" in line), f"code {code}")


def compiled(nvrtc, includes, targets):
    """The first folder whose headers compile for one of `targets`, and the PTX; else the last log."""
    log = "no folder with headers"
    for include in includes:
        for target in targets:
            ptx, log = compile_probe(nvrtc, include, target)
            if ptx:
                return include, ptx, None
    return None, None, log


def gpu(index):
    """The driver, its GPU `index`, and what burn has kernels for it compiled for: itself, else the first of its family."""
    cuda, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    major, minor = ctypes.c_int(), ctypes.c_int()
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    minors, own = [minor.value] + [0] * (major.value > 9 and minor.value > 0), "a" if major.value >= 9 else ""
    return cuda, device, [f"sm_{major.value}{minor}{own}" for minor in minors]


def link_probe(index, ptx):
    """Why GPU `index` cannot load `ptx` by way of the driver's linker, as burn does; none where it can."""
    cuda, device, _ = gpu(index)
    log, context, state, code, module = ctypes.create_string_buffer(16384), *(ctypes.c_void_p() for _ in range(4))
    # CU_JIT_ERROR_LOG_BUFFER and _SIZE_BYTES
    options, values = (ctypes.c_int * 2)(5, 6), (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
    size, ref, kind_ptx = ctypes.c_size_t(), ctypes.byref, 1
    steps = {
        "cuDevicePrimaryCtxRetain": lambda: cuda.cuDevicePrimaryCtxRetain(ref(context), device),
        "cuCtxSetCurrent": lambda: cuda.cuCtxSetCurrent(context),
        "cuLinkCreate": lambda: cuda.cuLinkCreate_v2(2, options, values, ref(state)),
        "cuLinkAddData": lambda: cuda.cuLinkAddData_v2(
            state, kind_ptx, ptx, ctypes.c_size_t(len(ptx)), b"probe", 0, None, None),
        "cuLinkComplete": lambda: cuda.cuLinkComplete(state, ref(code), ref(size)),
        "cuModuleLoadData": lambda: cuda.cuModuleLoadData(ref(module), code),
    }
    failed = ((name, result) for name, step in steps.items() if (result := step()))
    name, result = next(failed, (None, 0))
    # The context would else hold memory for as long as this process lives.
    cuda.cuDevicePrimaryCtxRelease_v2(device)
    return f"{name} returns {result} {log.value.decode(errors='replace')}".strip() if name else None


def toolkit(driver_version, work, index=0):
    """Environment that a program needs to find NVRTC, its headers and cuBLAS, and which of them those
    are; a kernel for GPU `index` is compiled and loaded.

    Headers that lie in several folders are linked together in one under `work`."""
    folders = candidates()
    nvrtc, folder = nvrtc_library(folders, driver_version)
    found = nvrtc_version(nvrtc)
    if driver_version and found > driver_version:
        raise Missing(
            f"NVRTC is {version(found)} and the driver is for CUDA {version(driver_version)}: the driver cannot load what it compiles",
            f"install the CUDA toolkit {version(driver_version)} or older, `{sys.executable} -m pip install {wheels(driver_version)}`, or a newer driver",
        )
    # Headers of the compiler's own version are the best.
    folders.sort(key=lambda each: folder is None or each != folder.parent)
    includes = [folder / "include" for folder in folders if (folder / "include").is_dir()]
    targets = gpu(index)[2] if driver_version else ["sm_80"]
    include, ptx, log = compiled(nvrtc, includes, targets)
    if log and includes:
        include, ptx, log = compiled(nvrtc, [joined(includes, work / "cuda" / "include")], targets)
    if log is not None:
        raise Missing(
            f"NVRTC {version(found)} cannot compile a kernel: {log}",
            f"the headers of CUDA are missing or of another version: install the toolkit {version(found)}, or `{sys.executable} -m pip install {wheels(found)}`",
        )
    refused = link_probe(index, ptx) if driver_version else None
    if refused:
        raise Missing(
            f"the driver (CUDA {version(driver_version)}) does not load a kernel that NVRTC {version(found)} compiled for {targets[0]}: {refused}",
            "install a newer driver, or another CUDA toolkit",
        )
    environment = {"CUDA_PATH": str(include.parent)}
    known = [number for number in KNOWN if number <= min(found, driver_version or found)]
    built_for = known[-1] if known else KNOWN[0]
    environment["CUDARC_CUDA_VERSION"] = str(built_for)
    # What a program that is built for it looks for.
    names = ["libcublas.so", *(f"libcublas.so.{major}" for major in range(built_for // 1000, 11, -1))]
    cublas, beside = next(libraries(names, folders), (None, None))
    with_cublas = os.environ.get("VLM4D_CUBLAS") != "0"
    if driver_version and with_cublas and cublas is None:
        raise Missing(
            "no cuBLAS, which multiplies matrices",
            f"`{sys.executable} -m pip install {CUBLAS_WHEELS[built_for // 1000]}`, or measure burn's own products, hundreds of kernels to compile first, with VLM4D_CUBLAS=0 in the environment",
        )
    # By the names that a program asks for first: another toolkit's may be there under these alone.
    chosen = {"libnvrtc.so": nvrtc} | ({"libcublas.so": cublas} if with_cublas and cublas else {})
    links = linked({name: file_of(library) for name, library in chosen.items()}, work / "cuda" / "lib")
    # NVRTC's before cuBLAS's, beside which another may lie.
    places = [str(place) for place in dict.fromkeys([links, folder, beside]) if place]
    paths = [*places, os.environ.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    parts = {
        "nvrtc": f"{version(found)} {file_of(nvrtc)}",
        "cublas": file_of(cublas) if with_cublas and cublas else "not used",
    }
    return environment, parts


def joined(includes, to):
    """A folder of links to what is in `includes`, and to nothing else; the first of a name counts."""
    entries = [entry for include in includes if include != to for entry in include.iterdir()]
    return linked({entry.name: entry.resolve() for entry in reversed(entries)}, to)


def linked(files, to):
    """A folder of links to `files`, by name, and of nothing else."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name, file in files.items():
        (to / name).symlink_to(file)
    return to


class Nvml:
    """The driver's own count of the memory that is used on a GPU."""

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    def __init__(self, index):
        """The GPU that CUDA counts as `index`: NVML counts those that CUDA_VISIBLE_DEVICES hides too."""
        cuda, device, bus = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(32)
        if cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetPCIBusId(bus, len(bus), device):
            raise Missing(f"there is no GPU {index}", "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES")
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as e:
            raise Missing(f"no NVML, which tells the GPU's memory: {e}", "give the container the driver's `utility` part too")
        self.handle = ctypes.c_void_p()
        if self.library.nvmlInit_v2() or self.library.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(self.handle)):
            raise Missing(f"NVML does not know the GPU {bus.value.decode()}", "look at `nvidia-smi`")

    def used(self):
        memory = self.Memory()
        if self.library.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(memory)):
            raise OSError("NVML does not tell the memory")
        return memory.used


class Watch:
    """The most memory that is used on a GPU while a block runs, above what was used before it.

    Everything on that GPU counts, a context's own memory too: nothing else may run there."""

    def __init__(self, nvml):
        self.nvml, self.peak, self.running = nvml, None, True

    def __enter__(self):
        if self.nvml:
            self.before = self.nvml.used()
            self.peak = 0
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.peak = max(self.peak, self.nvml.used() - self.before)
            time.sleep(0.02)

    def __exit__(self, *_):
        self.running = False
        if self.nvml:
            self.thread.join()


def tell(command):
    """What a command prints, or nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
