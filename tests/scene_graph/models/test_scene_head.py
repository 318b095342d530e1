"""SceneHead: pooling, images without a label, images without objects."""

import torch
from torch.nn import functional as F

from gclip_mm.scene_graph.models.heads.scene_head import SceneHead, _pool_objects


def head():
    torch.manual_seed(0)
    return SceneHead(num_scenes=3, in_channels=4, obj_ctx_dim=5, in_levels=(0, 1), hidden_dim=8)


def test_pool_objects_gives_mean_and_maximum():
    ctx = torch.randn(5, 4)
    mean, most = _pool_objects(ctx, [2, 0, 3])
    torch.testing.assert_close(mean[0], ctx[:2].mean(0))
    torch.testing.assert_close(most[2], ctx[2:].amax(0))
    assert (mean[1] == 0).all() and (most[1] == 0).all()


def test_loss_ignores_images_without_scene_label():
    logits = torch.randn(3, 3, requires_grad=True)
    losses = head().loss(logits, torch.tensor([2, -1, 0]))
    expected = F.cross_entropy(logits[[0, 2]], torch.tensor([2, 0]))
    torch.testing.assert_close(losses['loss_scene'], expected)
    right = (logits[[0, 2]].argmax(1) == torch.tensor([2, 0])).float().mean() * 100
    assert losses['acc_scene'].item() == right.item()
    none = head().loss(logits, torch.tensor([-1, -1, -1]))
    assert none['loss_scene'] == 0 and 'acc_scene' not in none
    none['loss_scene'].backward()


def test_logits_depend_on_image_and_objects():
    model = head()
    feats = [torch.rand(2, 4, 6, 6, requires_grad=True) for _ in range(2)]
    ctx = torch.randn(3, 5, requires_grad=True)
    logits = model(feats, [(1.0, 1.0)] * 2, ctx, [3, 0])
    assert logits.shape == (2, 3)
    logits[0].sum().backward()
    assert all(f.grad[0].abs().sum() > 0 and f.grad[1].abs().sum() == 0 for f in feats)
    assert ctx.grad.abs().sum() > 0
