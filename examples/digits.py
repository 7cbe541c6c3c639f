"""Read handwritten digits: a small network in NumPy, trained with Adam, in under a second.

`adamas demo` does the same with Momentum and RMSProp beside it, and a picture.
"""

import numpy as np
from sklearn.datasets import load_digits

import adamas

random = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
order = random.permutation(len(labels))
test, train = order[:359], order[359:]

weights = {
    "hidden": (random.standard_normal((64, 128)) * 0.18).astype(np.float32),
    "hidden_bias": np.zeros(128, np.float32),
    "output": (random.standard_normal((128, 10)) * 0.12).astype(np.float32),
    "output_bias": np.zeros(10, np.float32),
}
EPOCHS, BATCH = 40, 64
STEPS = EPOCHS * (len(train) // BATCH)
optimizer = adamas.Adam(weights, lr=lambda step: 0.01 * (1 - (step - 1) / STEPS))


def forward(rows):
    hidden = np.maximum(images[rows] @ weights["hidden"] + weights["hidden_bias"], 0)
    scores = hidden @ weights["output"] + weights["output_bias"]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


losses = []
for _ in range(EPOCHS):
    random.shuffle(train)
    for first in range(0, len(train) - BATCH + 1, BATCH):
        rows = train[first : first + BATCH]
        hidden, odds = forward(rows)
        losses.append(-np.mean(np.log(odds[np.arange(BATCH), labels[rows]])))
        error = odds
        error[np.arange(BATCH), labels[rows]] -= 1
        error /= BATCH
        back = (error @ weights["output"].T) * (hidden > 0)
        optimizer.step(
            {
                "hidden": images[rows].T @ back,
                "hidden_bias": back.sum(axis=0),
                "output": hidden.T @ error,
                "output_bias": error.sum(axis=0),
            }
        )

accuracy = np.mean(forward(test)[1].argmax(axis=1) == labels[test])
print(
    f"loss {adamas.ema(losses, 0.95)[-1]:.4f}, {accuracy:.1%} of {len(test)} held-out images read"
)
assert accuracy >= 0.97
