"""A system of a host and an engine near memory: costs of experts, policies, a schedule of whole arrays."""
