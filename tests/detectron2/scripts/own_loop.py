"""A script with a loop of its own, like tools/plain_train_net.py."""

import torch

from tests.detectron2.toy import batches, make_model

model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for data in batches(2):
    optimizer.zero_grad()
    sum(model(data).values()).backward()
    optimizer.step()
