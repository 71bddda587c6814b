"""Attention over gathered pages, in torch, for every device.

R = rows, Q = queries of a row (padded), K = keys, H = query heads, G = key heads, D = key size, E = value size
"""

from torch import Tensor
from torch.nn import functional as F


def attend(q_RQHD: Tensor, k_RKGD: Tensor, v_RKGE: Tensor, mask_R1QK: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T, where the mask allows) v for each head; key head g serves H/G query heads. [R, Q, H, E]

    One key head for all queries (MLA) is folded into the query axis, so that its keys are read once.
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
