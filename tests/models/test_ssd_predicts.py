"""SSD can predict, which fails in unpatched MMDetection 3.3."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

import gclip_mm  # noqa: F401  applies the patch
from gclip_mm.engine.configs import find_config


def test_ssd_scores_equal_softmax_of_classifier():
    register_all_modules()
    model = Config.fromfile(find_config('mmdet::ssd/ssd300_coco.py')).model
    torch.manual_seed(0)
    head = MODELS.build(
        dict(model.bbox_head, num_classes=3, in_channels=(8,) * 6, test_cfg=model.test_cfg)
    )
    features = [torch.randn(1, 8, size, size) for size in (38, 19, 10, 5, 3, 1)]
    scores, deltas = head(features)
    results = head.predict_by_feat(
        scores, deltas, batch_img_metas=[dict(img_shape=(300, 300), scale_factor=(1, 1))]
    )[0]
    assert 0 < len(results) <= 200
    # Best first; the last of the four classes is background and never a label.
    flat = torch.cat([s.permute(0, 2, 3, 1).reshape(-1, 4) for s in scores])
    expected = flat.softmax(dim=1)[:, :3].max()
    torch.testing.assert_close(results.scores[0], expected)
    assert set(results.labels.tolist()) <= {0, 1, 2}
