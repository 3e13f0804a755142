"""A run whose engines and learners only wait: what the real coordinator costs at sizes that one machine has
not."""
