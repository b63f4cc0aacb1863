"""The main job from Python: locate, score, cut, fit and predict, on the built-in backbone and images.

python examples/quickstart.py
"""

import dna_probe

images = dna_probe.probe_set()
train, test = images.of_split("fit"), images.of_split("test")

# The pieces, one at a time: each result prints as text, gives a table() and a to_json().
layers = dna_probe.locate_layers("nano", train)
scores = dna_probe.score_units("nano", train, layers=layers)
units = dna_probe.truncate(scores)
print(layers, scores, units, sep="\n\n")

# All of the above and the classifier, from 20 images of each class.
detector = dna_probe.fit("nano", train, shots=20)
print(detector)
for prediction in detector.judge(test.images[:5]):
    print(f"{prediction.path}: {prediction.verdict}, probability of fake {prediction.probability:.2f}")

figure, axes = dna_probe.plots.attention_shift(layers)
figure.savefig("attention_shift.pdf")
