"""An access point anywhere that speaks the OpenAI protocol, as an engine."""
