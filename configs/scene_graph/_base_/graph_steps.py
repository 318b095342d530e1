# Steps of the pipelines of all scene-graph data sets. A config puts its Resize between them.
load_steps = [
    dict(type='LoadImageFromFile'),
    # Before all transforms that move pixels: PredCls and SGCls use the ground-truth boxes.
    dict(type='LoadSceneGraphAnnotations'),
]
# RandomFlip also swaps the predicates of a data set's flip_predicate_pairs.
augment_steps = [dict(type='RandomFlip', prob=0.5), dict(type='PackSceneGraphInputs')]
pack_for_test = dict(
    type='PackSceneGraphInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
)
