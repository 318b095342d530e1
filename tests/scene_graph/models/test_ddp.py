"""Two processes, one of which finds no pair in its batch: neither waits for the other in vain."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel


def _train(rank, world, file, model, batches, steps):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    # What torch hands to a process lies in memory that both share: each needs weights of its own.
    model = copy.deepcopy(model)
    # Every parameter has to have a gradient: find_unused_parameters is off.
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in ddp.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        batch = model.data_preprocessor(batches[rank], True)
        loss, _ = model.parse_losses(ddp(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    total = sum(p.detach().double().sum() for p in model.parameters())
    everyone = [torch.zeros_like(total) for _ in range(world)]
    dist.all_gather(everyone, total)
    assert total.isfinite() and torch.equal(everyone[0], everyone[1])
    dist.destroy_process_group()


@pytest.mark.parametrize('protocol', ['predcls', 'sgdet'])
def test_one_process_finds_no_pair(make_model, make_batch, pictures, tmp_path, protocol):
    model = make_model('CRNNContext', protocol=protocol, detector_loss=protocol == 'sgdet').train()
    empty = [pictures['keep_objects'](pictures['sample_of'](i), 0) for i in range(2)]
    if protocol == 'sgdet':
        model.test_cfg.rcnn.score_thr = 1.1  # the detector finds nothing either
    batches = [make_batch(range(2)), make_batch(empty)]
    args = (2, str(tmp_path / 'rendezvous'), model, batches, 2)
    # Not forked: by now other tests have started threads here, and a lock that one of them holds
    # would stay locked in the child for ever.
    mp.start_processes(_train, args, nprocs=2, start_method='spawn')
