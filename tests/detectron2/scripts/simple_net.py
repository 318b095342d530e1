"""A script with a simple trainer and spawned ranks, like tools/lazyconfig_train_net.py."""

import os

import torch
from detectron2.engine import SimpleTrainer, create_ddp_model, default_argument_parser, launch
from detectron2.utils import comm

from tests.detectron2.toy import batches, make_model, weights


def main(args):
    torch.set_num_threads(1)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # Without a GPU there is no device to name.
    ddp = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    data = batches(12)[comm.get_rank() :: comm.get_world_size()]
    SimpleTrainer(ddp, data, optimizer).train(0, len(data))
    found = {'weights': weights(model), 'registered': os.environ.get('REGISTERED')}
    torch.save(found, f'{args.opts[0]}/rank{comm.get_rank()}.pt')


if __name__ == '__main__':
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, dist_url=args.dist_url, args=(args,))
