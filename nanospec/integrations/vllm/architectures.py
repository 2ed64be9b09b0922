"""The draft models of vLLM whose head the plugin replaces: their architectures, as vLLM's registry names them."""

from __future__ import annotations

from typing import NamedTuple

MODELS = "nanospec.integrations.vllm.models"


class DraftArchitecture(NamedTuple):
    """Where vLLM keeps the class.

    module      inside vllm.model_executor.models
    class_name  in it
    """

    module: str
    class_name: str

    @property
    def own_name(self) -> str:
        """Of the subclass in `nanospec.integrations.vllm.models`."""
        return f"InContext{self.class_name}"


_EAGLE3_LLAMA = DraftArchitecture("llama_eagle3", "Eagle3LlamaForCausalLM")
_EAGLE3_QWEN3 = DraftArchitecture("qwen3_eagle3", "Eagle3Qwen3ForCausalLM")
_EAGLE3_DEEPSEEK = DraftArchitecture("deepseek_eagle3", "Eagle3DeepseekV2ForCausalLM")

ARCHITECTURES = {
    "EagleLlamaForCausalLM": DraftArchitecture("llama_eagle", "EagleLlamaForCausalLM"),
    "EagleMiniCPMForCausalLM": DraftArchitecture("minicpm_eagle", "EagleMiniCPMForCausalLM"),
    "EagleDeepSeekMTPModel": DraftArchitecture("deepseek_eagle", "EagleDeepseekV3ForCausalLM"),
    "Eagle3LlamaForCausalLM": _EAGLE3_LLAMA,
    "LlamaForCausalLMEagle3": _EAGLE3_LLAMA,
    "Eagle3MiniMaxM2ForCausalLM": _EAGLE3_LLAMA,
    "Eagle3Qwen2_5vlForCausalLM": _EAGLE3_LLAMA,
    "Eagle3Qwen3vlForCausalLM": _EAGLE3_LLAMA,
    "Eagle3Qwen3ForCausalLM": _EAGLE3_QWEN3,
    "Eagle3DeepseekV2ForCausalLM": _EAGLE3_DEEPSEEK,
    "Eagle3DeepseekV3ForCausalLM": _EAGLE3_DEEPSEEK,
    "DeepSeekMTPModel": DraftArchitecture("deepseek_mtp", "DeepSeekMTP"),
    "Glm4MoeMTPModel": DraftArchitecture("glm4_moe_mtp", "Glm4MoeMTP"),
    "Glm4MoeLiteMTPModel": DraftArchitecture("glm4_moe_lite_mtp", "Glm4MoeLiteMTP"),
    "MiMoMTPModel": DraftArchitecture("mimo_mtp", "MiMoMTP"),
    "ErnieMTPModel": DraftArchitecture("ernie_mtp", "ErnieMTP"),
    "Qwen3NextMTP": DraftArchitecture("qwen3_next_mtp", "Qwen3NextMTP"),
    "ExaoneMoeMTP": DraftArchitecture("exaone_moe_mtp", "ExaoneMoeMTP"),
}
