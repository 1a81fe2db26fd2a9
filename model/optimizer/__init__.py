"""MuonClip: Muon for matrices, AdamW for the rest, and the clip of attention logits (source: K2, section 2.1)."""
