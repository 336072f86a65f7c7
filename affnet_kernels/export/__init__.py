"""Models with `AFFMixer`s for runtimes that have no FFT: ONNX, ExecuTorch, Core ML, OpenVINO, AOTInductor."""

from affnet_kernels.export.aoti import export_aoti
from affnet_kernels.export.coreml import export_coreml
from affnet_kernels.export.executorch import export_executorch
from affnet_kernels.export.exportable import to_exportable
from affnet_kernels.export.onnx import export_onnx
from affnet_kernels.export.onnx_translation import ONNX_TRANSLATIONS
from affnet_kernels.export.openvino import export_openvino
from affnet_kernels.export.program import Exported
from affnet_kernels.export.quantization import quantize_onnx

__all__ = [
    "ONNX_TRANSLATIONS",
    "Exported",
    "export_aoti",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "export_openvino",
    "quantize_onnx",
    "to_exportable",
]
