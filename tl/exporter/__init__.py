"""From a trained network to a verified model file that describes and tests itself.

Read the modules in this order: `export` (the steps), `export_source` (what is exported), `parity` (compares the file
with what was validated), `publish` (golden samples, the contract, the write). `precision` adds fp16 and int8:
`quantization` converts, `speed_comparison` measures. `merging`, `refitting` and `adoption` make model files without
torch.
"""
