_base_ = ['./rnn_predcls_photos.py']
# SGDet needs detections, so the detector is trained too. From scratch on a few dozen photos it
# finds little: load_from a detector that was trained on more data.
model = dict(
    protocol='sgdet',
    detector_loss=True,
    # Half as many regions and pairs, which halves the time of a step.
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=50),
        rcnn=dict(sampler=dict(num=64)),
        relation=dict(sampler=dict(num=32)),
    ),
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
