"""Map a provider's documented environment variable for its key to the hosts of its own API.

A provider is listed only if nobody else can have a host of that name. Azure's and Bedrock's hosts are named by their
customers, so a key goes there only with the user's approval.
"""

from __future__ import annotations

HOSTS: dict[str, tuple[str, ...]] = {
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "CEREBRAS_API_KEY": ("api.cerebras.ai",),
    "COHERE_API_KEY": ("api.cohere.ai", "api.cohere.com"),
    "CO_API_KEY": ("api.cohere.ai", "api.cohere.com"),
    "DASHSCOPE_API_KEY": ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
    "DEEPINFRA_API_KEY": ("api.deepinfra.com",),
    "DEEPSEEK_API_KEY": ("api.deepseek.com",),
    "FIREWORKS_API_KEY": ("api.fireworks.ai",),
    "GEMINI_API_KEY": ("generativelanguage.googleapis.com",),
    "GOOGLE_API_KEY": ("generativelanguage.googleapis.com",),
    "GROQ_API_KEY": ("api.groq.com",),
    "HF_TOKEN": ("router.huggingface.co",),
    "MISTRAL_API_KEY": ("api.mistral.ai",),
    "MOONSHOT_API_KEY": ("api.moonshot.ai", "api.moonshot.cn"),
    "NVIDIA_API_KEY": ("integrate.api.nvidia.com",),
    "OPENAI_API_KEY": ("api.openai.com", "eu.api.openai.com", "us.api.openai.com"),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
    "PERPLEXITY_API_KEY": ("api.perplexity.ai",),
    "SAMBANOVA_API_KEY": ("api.sambanova.ai",),
    "TOGETHER_API_KEY": ("api.together.ai", "api.together.xyz"),
    "XAI_API_KEY": ("api.x.ai",),
}


def owns(host: str, variable: str) -> bool:
    """Tell whether ``host`` (as in `OpenAITeacher.host`) belongs to the provider whose key ``variable`` holds."""
    return host in HOSTS.get(variable, ())
