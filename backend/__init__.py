"""The Label Studio ML backend: features, head, uncertainty, queue order, retraining, rescoring."""
