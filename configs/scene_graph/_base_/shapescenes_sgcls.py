# SGCls needs a classifier for object labels, so the detector is trained on its own losses too.
_base_ = './shapescenes_joint.py'

model = dict(protocol='sgcls')
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
