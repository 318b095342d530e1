"""NMS and RoIAlign of MMCV, written to ONNX as its own operators.

MMCV's kernels are compiled code that a tracer does not see. Each function here calls MMCV when it
runs, and names the equal operator of ONNX when it is exported.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmcv.ops import nms as mmcv_nms
from mmcv.ops.roi_align import roi_align as mmcv_roi_align
from torch import Tensor


class _NMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou_thr: float) -> Tensor:
        return mmcv_nms(boxes, scores, iou_thr)[1]

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_thr: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op('Constant', value_t=torch.tensor(value, dtype=dtype))

        # The operator wants (batch, boxes, 4) and (batch, classes, boxes).
        boxes = g.op('Unsqueeze', boxes, constant([0], torch.int64))
        scores = g.op('Unsqueeze', scores, constant([0, 1], torch.int64))
        most = constant([2**31 - 1], torch.int64)
        chosen = g.op('NonMaxSuppression', boxes, scores, most, constant([iou_thr], torch.float32))
        # Rows are (batch, class, box), the best first.
        return g.op('Gather', chosen, constant(2, torch.int64), axis_i=1)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, rois: Tensor, layer: RoIAlign, channels: int) -> Tensor:
        if not len(rois):
            return maps.new_zeros(0, channels, *layer.output_size)
        return mmcv_roi_align(
            maps,
            rois,
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.pool_mode,
            layer.aligned,
        )

    @staticmethod
    def symbolic(g: Any, maps: Any, rois: Any, layer: RoIAlign, channels: int) -> Any:
        columns = g.op('Constant', value_t=torch.tensor([1, 2, 3, 4]))
        first = g.op('Constant', value_t=torch.tensor(0))
        found = g.op(
            'RoiAlign',
            maps,
            g.op('Gather', rois, columns, axis_i=1),
            g.op('Cast', g.op('Gather', rois, first, axis_i=1), to_i=7),  # 7 is int64
            coordinate_transformation_mode_s='half_pixel' if layer.aligned else 'output_half_pixel',
            mode_s=layer.pool_mode,
            output_height_i=layer.output_size[0],
            output_width_i=layer.output_size[1],
            sampling_ratio_i=layer.sampling_ratio,
            spatial_scale_f=layer.spatial_scale,
        )
        # Layers after it need to know that all but the number of RoIs is constant.
        kind = torch._C.TensorType.get().with_dtype(torch.float32)
        found.setType(kind.with_sizes([None, channels, *layer.output_size]))
        return found


def nms(boxes: Tensor, scores: Tensor, iou_thr: float) -> Tensor:
    """Indices (K,) int64, best first, of the boxes (N, 4) xyxy that NMS keeps; scores (N,)."""
    return _NMS.apply(boxes, scores, iou_thr)


def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_thr: float, extent: Tensor
) -> Tensor:
    """:func:`nms` within each group (N,) int64; boxes of different groups do not suppress.

    ``extent`` (): no coordinate is larger.
    """
    apart = groups.to(boxes) * (extent + 1)
    return nms(boxes + apart[:, None], scores, iou_thr)


def roi_align(maps: Tensor, rois: Tensor, layer: RoIAlign) -> Tensor:
    """What ``layer`` returns for maps (B, C, H, W) and RoIs (K, 5): (K, C, S, S)."""
    return _RoIAlign.apply(maps, rois, layer, int(maps.shape[1]))
