"""What the globals that a pickle names would have done: labels for the reader, never a filter.

Safety does not rest on this table: no global is ever resolved. Source of the names: what torch,
numpy and Python's own classes write into checkpoints (torch 2.15, numpy 2), and the modules that
public advisories on pickle loaders name as reaching a shell, a file, the network or the importer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptool.checkpoint import GlobalName
from ckptool.dtypes import find
from ckptool.formats.nodes import Global

_RUNS = "runs code"
_FILES = "reaches files or other processes"
_NETWORK = "reaches the network"
_LOOKUP = "fetches any attribute or module by name"

_MODULES = {
    **dict.fromkeys(
        "os posix nt ntpath posixpath subprocess pty commands shutil tempfile glob fileinput io "
        "_io pathlib2 multiprocessing threading _thread asyncio concurrent signal mmap fcntl "
        "sqlite3 zipfile tarfile zipimport platform uuid ctypes _ctypes cffi _posixsubprocess "
        "popen2 dbm shelve linecache".split(),
        _FILES,
    ),
    **dict.fromkeys(
        "builtins __builtin__ runpy code codeop pickle _pickle cPickle marshal timeit trace pdb "
        "bdb cProfile profile doctest types dis idlelib lib2to3 unittest test pip setuptools "
        "distutils ensurepip venv site imp jit cloudpickle dill joblib numba cython pyximport "
        "exec readline rlcompleter turtle tkinter _testcapi nose pytest faulthandler atexit "
        "sched weakref torch.jit torch.hub torch.utils torch.fx torch.package torch._dynamo "
        "torch._inductor torch.distributed numpy.testing numpy.f2py numpy.distutils pandas scipy "
        "IPython ipykernel logging gc sys inspect".split(),
        _RUNS,
    ),
    **dict.fromkeys(
        "socket _socket ssl urllib urllib2 http httplib ftplib smtplib poplib imaplib telnetlib "
        "nntplib xmlrpc webbrowser requests aiohttp httpx wsgiref cgi".split(),
        _NETWORK,
    ),
    **dict.fromkeys(
        "importlib pkgutil pydoc operator _operator functools _functools copyreg copy_reg "
        "itertools string re sre".split(),
        _LOOKUP,
    ),
}

# Names inside those modules, and plain functions elsewhere, that only build a value.
_HARMLESS = frozenset(
    [
        f"builtins.{name}"
        for name in (
            "set frozenset list dict tuple int float bool str bytes bytearray complex slice range "
            "object Ellipsis NotImplemented"
        ).split()
    ]
    + [
        f"__builtin__.{name}"
        for name in (
            "set frozenset list dict tuple int long float bool str unicode bytes bytearray complex "
            "slice range xrange object"
        ).split()
    ]
    + "copyreg._reconstructor copy_reg._reconstructor collections.deque collections.defaultdict "
    "types.SimpleNamespace types.MappingProxyType datetime.datetime datetime.date "
    "datetime.timedelta datetime.timezone datetime.time decimal.Decimal fractions.Fraction "
    "uuid.UUID _codecs.encode numpy.dtype numpy.ndarray torch.serialization._get_layout".split()
    + [
        f"torch.{name}"
        for name in (
            "device dtype layout memory_format strided sparse_coo sparse_csr sparse_csc sparse_bsr "
            "sparse_bsc jagged contiguous_format preserve_format channels_last channels_last_3d "
            "per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric "
            "per_channel_affine_float_qparams"
        ).split()
    ]
)
_REBUILDERS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type(_v2)?"
    r"|torch\.jit\._pickle\.(build_\w+|restore_type_tag)|__torch__\..*"
    r"|torch\.(bits|q?u?int|float)\d\w*"  # dtypes that are not read
    r"|numpy\.(_core|core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|numpy\.random\._pickle\.\w+"
)
_EXACTLY = {
    "torch.storage._load_from_bytes": "loads another pickle",
    "torch.load": "loads another pickle",
    "torch.package.PackageImporter": _RUNS,
}


def label(names: Iterable[Global]) -> tuple[GlobalName, ...]:
    """The globals with what each would have done, in order, each once."""
    found = {item.path: GlobalName(item.path, _danger(item)) for item in names}
    return tuple(found.values())


def _danger(item: Global) -> str | None:
    if item.path in _EXACTLY:
        return _EXACTLY[item.path]
    # A dotted name leads on from a module to whatever that module has imported.
    if "." not in item.name and (
        item.path in _HARMLESS
        or _REBUILDERS.fullmatch(item.path)
        or (item.module == "torch" and find(item.name))
    ):
        return None
    # `os` with the name `path.join` is the same attribute as `os.path` with `join`.
    parts = item.path.split(".")
    a_class = _is_class(parts[-1])
    for known in (parts[0], ".".join(parts[:2])):
        reason = _MODULES.get(known)
        if reason and not (reason is _RUNS and a_class and parts[0] == "torch"):
            return reason
    return None if a_class else "is called, and ckptool does not know it"


def _is_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()
