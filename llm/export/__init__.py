"""What leaves the pipeline: GGUF files, the model card, lineage, checksums, and checks of each format."""
