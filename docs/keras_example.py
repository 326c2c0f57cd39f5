"""ResNet50 teaches MobileNetV2 by compile and fit: python docs/keras_example.py photos.npz 10 (images, labels; epochs)."""

import sys

import keras
import numpy as np

from understudy import Rows, Task, measure, teach
from understudy.adapters.keras import KerasTeacher, SoftLabels, export, label_accuracy, rows_of, scorecard
from understudy.data.keys import content_keys

photos = np.load(sys.argv[1])  # images uint8 [rows, height, width, 3], labels 0, 1, 2, ...
images, labels, epochs = photos["images"], photos["labels"].astype(np.int64), int(sys.argv[2])
task = Task("multiclass", tuple(map(str, range(labels.max() + 1))))
rows = Rows("image", images, content_keys(images, "image"), labels)
train, test = rows.take(slice(0, len(rows) * 4 // 5)), rows.take(slice(len(rows) * 4 // 5, None))


def network(build):
    """Raw pixels in, logits out."""
    inner = build(weights=None, input_shape=images.shape[1:], classes=len(task.classes), classifier_activation=None)
    for norm in (layer for layer in inner.layers if isinstance(layer, keras.layers.BatchNormalization)):
        norm.momentum = 0.9  # theirs, 0.99 and 0.999, are for a hundred thousand steps
    return keras.Sequential([keras.Input(images.shape[1:]), keras.layers.Rescaling(1 / 127.5, -1), inner])


resnet = network(keras.applications.ResNet50)  # with pretrained weights where they can be downloaded
resnet.compile(keras.optimizers.Adam(5e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
resnet.fit(train.inputs.astype("float32"), train.labels, epochs=epochs, batch_size=32, verbose=2)
taught = teach(KerasTeacher.from_model(resnet, task=task), train, "runs/keras_example/transfer", task=task)

student, control = network(keras.applications.MobileNetV2), network(keras.applications.MobileNetV2)
control.set_weights(student.get_weights())
card = scorecard(measure, test, task, teacher=resnet, control=control, to="runs/keras_example")
for model, alpha, callbacks in ((control, 0.0, []), (student, 0.5, [card])):
    model.compile(keras.optimizers.Adam(1e-3), SoftLabels(alpha=alpha, temperature=2, student=model), metrics=[label_accuracy()])
    model.fit(rows_of(taught, train, batch_size=32), epochs=epochs, callbacks=callbacks, verbose=2)
files = export(student, "runs/keras_example", test, task)
print({name: said["quality"]["accuracy"]["mean"] for name, said in card.card["models"].items()}, card.card["verdict"]["text"])
print({name: float((said.argmax(1) == test.labels).mean()) for name, said in files.items()})
