"""A script with the default trainer that knows nothing of clipping, like tools/train_net.py."""

import torch
from detectron2.engine import default_argument_parser, default_setup, launch

from tests.detectron2.toy import Trainer, make_cfg, weights


def main(args):
    cfg = make_cfg('', 6)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    torch.save(weights(trainer.model), f'{cfg.OUTPUT_DIR}/weights.pt')


if __name__ == '__main__':
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, dist_url=args.dist_url, args=(args,))
