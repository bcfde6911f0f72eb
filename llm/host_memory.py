"""How this process uses glibc's memory on the CPU: freed arrays stay with it, in one heap and in huge pages.

In: nothing. Out: a changed allocator; nothing where there is no glibc. Left out: devices' own memory.

Left to itself glibc gives every large array back at once, and pages that are fresh for each step take time; so does
finding many small ones.
"""

import ctypes
import mmap
import os
import pathlib
import resource

# Tunable of glibc's malloc -> (option of mallopt, value); thresholds in bytes. -1: never trimmed; where that began at
# 2 GiB, training steps gave 1 GB back and asked for it again.
ALLOCATOR = {'trim_threshold': (-1, -1), 'mmap_threshold': (-3, 2**30), 'arena_max': (-8, 1)}
_BLOCK = 2**29  # bytes, below the threshold


def keep_memory() -> None:
    """Must come before the first array."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, 'mallopt'):
        return
    for option, value in ALLOCATOR.values():
        libc.mallopt(option, value)
    if _may_reserve():
        _use_huge_pages(libc)


def _may_reserve() -> bool:
    """Whether memory that is asked for and not touched counts nowhere."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    overcommit = pathlib.Path('/proc/sys/vm/overcommit_memory')
    return all(limit == resource.RLIM_INFINITY for limit in limits) and not (
        overcommit.exists() and overcommit.read_text().strip() == '2')


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """The heap grows by half of the machine's memory and keeps that, hardly a page of it touched, with the advice to
    the kernel, for the arrays to come. (The tunable `hugetlb`, set before a process begins, advises all of the heap.)
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    blocks = [libc.malloc(_BLOCK) for _ in range(os.sysconf('SC_PHYS_PAGES') * page // 2 // _BLOCK)]
    for address in filter(None, blocks):
        libc.madvise(-(-address // page) * page, _BLOCK - page, mmap.MADV_HUGEPAGE)
    for address in blocks:
        libc.free(address)
