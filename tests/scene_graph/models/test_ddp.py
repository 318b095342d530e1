"""Distributed training does not hang if the batch of one process has no pair."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel


def _train(rank, world, file, model, batches, steps):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    # Every parameter needs a gradient, because find_unused_parameters is off.
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in ddp.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        batch = model.data_preprocessor(batches[rank], True)
        loss, _ = model.parse_losses(ddp(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(sum(p.detach().double().sum() for p in model.parameters()), f'{file}_{rank}')
    dist.barrier()
    # No teardown: a gloo thread may need the GIL to release the tensors of a collective, while the
    # destructor of `ddp` holds the GIL and waits for that thread.
    os._exit(0)


@pytest.mark.parametrize('protocol', ['predcls', 'sgdet'])
def test_ddp_trains_if_one_process_has_no_pair(
    make_model, make_batch, pictures, tmp_path, protocol
):
    model = make_model('CRNNContext', protocol=protocol, detector_loss=protocol == 'sgdet').train()
    empty = [pictures['keep_objects'](pictures['sample_of'](i), 0) for i in range(2)]
    if protocol == 'sgdet':
        model.test_cfg.rcnn.score_thr = 1.1  # the detector finds no objects either
    batches = [make_batch(range(2)), make_batch(empty)]
    args = (2, str(tmp_path / 'rendezvous'), model, batches, 2)
    # Fork, so that processes do not have to import everything again.
    mp.start_processes(_train, args, nprocs=2, start_method='fork')
    one, other = (torch.load(tmp_path / f'rendezvous_{rank}') for rank in range(2))
    assert one.isfinite() and torch.equal(one, other)
