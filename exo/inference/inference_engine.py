"""Former path of `exo.inference.engines.inference_engine`, kept for code outside."""

from exo.inference.arrays import Array as Array
from exo.inference.engines.inference_engine import InferenceEngine as InferenceEngine
from exo.inference.engines.inference_engine import Step as Step
