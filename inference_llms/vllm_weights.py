"""What a worker of vLLM does with new weights; vLLM adds these methods to its own worker class."""

import hashlib
import pickle


class ReplaceableWeights:
    """Weights come pickled, as an object that computes them: see `live_engine.Weights`."""

    def replace_weights(self, pickled: bytes) -> None:
        """Load these weights as if they were the checkpoint's, into the tensors that are there: vLLM joins, slices and
        packs them for this worker, and its captured graphs stay good."""
        self.reload_weights(weights_iterator=iter(pickle.loads(pickled)))

    def checksum_of_weights(self) -> str:
        """A hash of this worker's tensors, names and bits."""
        from vllm.model_executor.model_loader.weight_checksum import compute_tensor_digests

        digests = compute_tensor_digests(self.model_runner.get_model())
        return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
