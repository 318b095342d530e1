_base_ = ['./imp_predcls_shapescenes.py']
# Boxes and labels are found: the detector is trained along, from scratch.
model = dict(protocol='sgdet', detector_loss=True)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
