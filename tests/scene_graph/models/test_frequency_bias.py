"""FrequencyBias against log-frequencies computed by hand, and errors for invalid files."""

import numpy as np
import pytest
import torch

from gclip_mm.scene_graph.models.heads.frequency_bias import FrequencyBias, load_counts, save_counts


def counts():
    relations, unrelated = np.zeros((2, 2, 3), np.int64), np.zeros((2, 2), np.int64)
    relations[0, 1] = [3, 0, 1]
    unrelated[0, 1] = 4
    unrelated[1, 1] = 5
    return relations, unrelated


def test_logits_equal_log_frequencies():
    bias = FrequencyBias(2, 3)
    bias.set_counts(*counts())
    labels = torch.tensor([0, 1, 1])
    logits = bias(labels, torch.tensor([[0, 1], [1, 2], [1, 0]]))
    expected = np.log(
        [
            [3 / 8 + 1e-3, 1e-3, 1 / 8 + 1e-3, 4 / 8 + 1e-3],
            [1e-3, 1e-3, 1e-3, 1 + 1e-3],
            [0.25 + 1e-3] * 4,  # these two classes never occur together
        ]
    )
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-6)


def test_logits_depend_on_direction():
    bias = FrequencyBias(2, 3)
    bias.set_counts(*counts())
    labels = torch.tensor([0, 1])
    there, back = bias(labels, torch.tensor([[0, 1], [1, 0]]))
    assert not torch.allclose(there, back)


def test_trainable_controls_gradient():
    for trainable in (True, False):
        bias = FrequencyBias(2, 3, trainable=trainable)
        assert bias.weight.requires_grad is trainable


def test_missing_counts_raise_with_remedy():
    with pytest.raises(RuntimeError, match='FrequencyBiasHook'):
        FrequencyBias(2, 3)(torch.tensor([0, 1]), torch.tensor([[0, 1]]))


def test_counts_survive_state_dict():
    bias, other = FrequencyBias(2, 3), FrequencyBias(2, 3)
    bias.set_counts(*counts())
    other.load_state_dict(bias.state_dict())
    labels, pairs = torch.tensor([0, 1]), torch.tensor([[0, 1]])
    assert torch.equal(other(labels, pairs), bias(labels, pairs))


def test_counts_survive_npz_file(tmp_path):
    save_counts(tmp_path / 'deep' / 'counts.npz', *counts())
    for written, read in zip(counts(), load_counts(tmp_path / 'deep' / 'counts.npz'), strict=True):
        np.testing.assert_array_equal(written, read)
    bias = FrequencyBias(2, 3, file=str(tmp_path / 'deep' / 'counts.npz'))
    assert bias.ready
    assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['counts.npz']


def test_invalid_counts_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_counts(tmp_path / 'nowhere.npz')
    (tmp_path / 'broken.npz').write_bytes(b'PK not really')
    np.savez(tmp_path / 'other.npz', relations=np.zeros(3))
    for name in ('broken.npz', 'other.npz'):
        with pytest.raises(ValueError, match=f'{name} does not contain the counts'):
            load_counts(tmp_path / name)


def test_counts_with_other_shape_raise():
    relations, unrelated = counts()
    with pytest.raises(ValueError, match=r'2 classes and 4 predicates.*\(2, 2, 3\)'):
        FrequencyBias(2, 4).set_counts(relations, unrelated)
    with pytest.raises(ValueError, match='smoothing must be positive'):
        FrequencyBias(2, 3, smoothing=0)
