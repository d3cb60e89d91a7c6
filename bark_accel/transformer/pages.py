"""Memory in pages of 2 MB, of which a core finds the addresses of a whole key-value cache without looking them up."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor


def ask_for_large_pages(tensor: Tensor) -> bool:
    """Ask Linux to back a contiguous CPU tensor that nobody has written to yet with pages of 2 MB.

    It is advice: where the system has none to give (``/sys/kernel/mm/transparent_hugepage/enabled`` says ``never``), or
    is not Linux, nothing changes but the return value. The first write to a page makes all of its 2 MB resident.

    Returns
    -------
    bool
        Whether the system took the advice.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return False
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return False
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise(first, last - first, advice) == 0
