"""The Label Studio ML backend: features, head, uncertainty, acquisition, retraining and rescoring."""
