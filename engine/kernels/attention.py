"""Attention over pages where they lie: nothing is gathered, no mask is made. float32 on a CPU.

T = tokens of a segment, H = query heads, G = key heads, D = key size, E = value size
"""

import ctypes

from torch import Tensor

from engine.batch import Keys
from engine.kernels.native import Attention, Library
from engine.pages import Slab


def attend_in_place(
    q_THD: Tensor, key: Slab, value: Slab, value_size: int, keys: Keys, scale: float, library: Library
) -> Tensor:
    """softmax(scale q k^T) v of every token over the keys that it sees. [T, H, E]

    `value` may be the slab of the keys themselves: then the first numbers of a key are its value (MLA).
    """
    q_THD = q_THD.contiguous()
    num_tokens, num_heads, key_size = q_THD.shape
    out_THE = q_THD.new_empty(num_tokens, num_heads, value_size)
    keys.check(key.num_pages)
    page_tokens = key.rows.shape[1]
    key_row, value_row = (slab.pages_2d.shape[1] // page_tokens for slab in (key, value))
    assert key.pages_2d.stride(0) == value.pages_2d.stride(0)
    library.attend(
        ctypes.byref(
            Attention(
                q=q_THD.data_ptr(),
                keys=key.pages_2d.data_ptr(),
                values=value.pages_2d.data_ptr(),
                out=out_THE.data_ptr(),
                tables=keys.pages_RP.data_ptr(),
                row=keys.row_T.data_ptr(),
                first=keys.first_T.data_ptr(),
                last=keys.last_T.data_ptr(),
                page0=keys.first_page_R.data_ptr(),
                T=num_tokens,
                H=num_heads,
                G=key_row // key_size,
                D=key_size,
                E=value_size,
                key_row=key_row,
                value_row=value_row,
                page_stride=key.pages_2d.stride(0),
                max_pages=keys.pages_RP.shape[1],
                page_tokens=page_tokens,
                scale=scale,
            )
        )
    )
    return out_THE
