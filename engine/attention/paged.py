"""Attention of a step's tokens over gathered pages, in torch, for every device. Kernels are tested against this.

R = rows, Q = queries of a row (padded), K = keys, T = tokens of a segment, H = query heads, G = key heads,
D = key size, E = value size
"""

from torch import Tensor
from torch.nn import functional as F

from engine.batch import Keys, Segment
from engine.pages import Slab


def gathered(
    q_THD: Tensor, key: Slab, value: Slab, value_size: int, segment: Segment, keys: Keys, scale: float
) -> Tensor:
    """Compute softmax(scale q k^T) v for a segment's tokens over their visible keys. [T, H, E]

    Key head g serves H/G query heads. If `value` is the slab of the keys (MLA, one head), the first `value_size`
    numbers of a key are its value.
    """
    k_RKGD = key.gather(keys.pages_RP)
    if value is key:
        k_RKGD = k_RKGD[:, :, None]
        v_RKGE = k_RKGD[..., :value_size]
    else:
        v_RKGE = value.gather(keys.pages_RP)
    return segment.unpad(attend(segment.pad(q_THD), k_RKGD, v_RKGE, keys.mask_R1QK, scale))


def attend(q_RQHD: Tensor, k_RKGD: Tensor, v_RKGE: Tensor, mask_R1QK: Tensor, scale: float) -> Tensor:
    """Compute softmax(scale q k^T) v for each head, masked. [R, Q, H, E]

    With one key head for all queries (MLA), heads are folded into the query axis, so that keys are read once.
    """
    num_queries, num_heads, num_key_heads = q_RQHD.shape[1], q_RQHD.shape[2], k_RKGD.shape[2]
    k_RGKD, v_RGKE = k_RKGD.transpose(1, 2), v_RKGE.transpose(1, 2)
    if num_key_heads > 1:
        out_RHQE = F.scaled_dot_product_attention(
            q_RQHD.transpose(1, 2),
            k_RGKD,
            v_RGKE,
            attn_mask=mask_R1QK,
            scale=scale,
            enable_gqa=num_key_heads != num_heads,
        )
        return out_RHQE.transpose(1, 2)
    q_folded = q_RQHD.flatten(1, 2)[:, None]
    mask_folded = mask_R1QK[:, :, :, None].expand(-1, -1, -1, num_heads, -1).flatten(2, 3)
    out_folded = F.scaled_dot_product_attention(q_folded, k_RGKD, v_RGKE, attn_mask=mask_folded, scale=scale)
    out_RQHE: Tensor = out_folded[:, 0].unflatten(1, (num_queries, num_heads))
    return out_RQHE
