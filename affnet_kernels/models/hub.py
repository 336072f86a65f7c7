"""Loading from and saving to the Hugging Face hub, where huggingface_hub is installed."""


class HubMixin:
    pass
