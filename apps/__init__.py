"""Programs for people, made of the runtime alone: no torch, no model, no exporter."""
