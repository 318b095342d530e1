# Steps of the pipelines with proposals: a Resize stands between them, inside a ProposalBroadcaster,
# which moves the proposals as it moves the boxes.
load_proposals = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=2000),
]
load_for_training = [*load_proposals, dict(type='LoadAnnotations', with_bbox=True)]
flip = dict(type='RandomFlip', prob=0.5)
