_base_ = ['./rnn_predcls_shapescenes.py']
# Object labels need a classifier: the detector is trained on its own losses too.
model = dict(protocol='sgcls', detector_loss=True)
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
