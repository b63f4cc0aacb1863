"""A service whose detector takes its time, to be stopped in the middle; prints the port, and serves until a signal."""

import sys
import time

from dna_probe.anchor import Calibration
from dna_probe.detector import Prediction
from dna_probe.serving.application import create_application
from dna_probe.serving.batching import Batcher
from dna_probe.serving.metrics import Metrics
from dna_probe.serving.server import listen, run
from dna_probe.serving.uploads import Limits


class Slow:
    name, modality, threshold, calibration = "slow", "image", 0.5, Calibration(1.0, 0.0)

    def stream(self, sources, options=None):
        time.sleep(0.2)
        for source in sources:
            yield Prediction(source.name, len(source.read_bytes()) / 1000, "real", self.threshold)


metrics = Metrics("1", "slow")
batcher = Batcher(Slow(), max_batch=8, wait=0.01, observe=metrics.count_batch)
listening = listen("127.0.0.1", 0)


def ready():
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()


run(create_application(Slow(), "1", batcher, metrics, Limits()), listening, ready)
sys.stdout.write("stopped\n")
