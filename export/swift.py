"""The Swift file of a Core ML bundle: loads the package, picks a function, feeds a camera's frames, reads the answer."""

from collections.abc import Sequence

from tasktok_edge.export.graph import Function, output_names
from tasktok_edge.model.config import TaskTokConfig

FILE = "Restorer.swift"

TEMPLATE = """\
// {name}: {packages}. Needs iOS {ios} or macOS {macos}. Generated from manifest.json.
import AVFoundation
import CoreImage
import CoreML

enum RestorerFunction: String, CaseIterable {{
{cases}

    var package: String {{ "{package}" }}

    /// restore: (1, S, S, 3) in 0...1. predict: logits (1, C) or (1, C, S, S); or boxes (1, N, 4) and scores (1, N, C).
    var outputs: [String] {{
        switch self {{
{outputs}
        }}
    }}
}}

enum RestorerLabels {{
{labels}
}}

final class Restorer: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate {{
    static let size = {size}  // the function's square, pixels
    var onAnswer: (([String: MLMultiArray]) -> Void)?
    var onError: ((Error) -> Void)?
    private let model: MLModel, function: RestorerFunction
    private let context = CIContext()
    private var square: CVPixelBuffer?

    init(package: URL, function: RestorerFunction, units: MLComputeUnits = .all) async throws {{
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
{choice}        let compiled = try await MLModel.compileModel(at: package)
        self.model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        self.function = function
        super.init()
        let shared = [kCVPixelBufferIOSurfacePropertiesKey: [:]] as CFDictionary
        CVPixelBufferCreate(nil, Self.size, Self.size, kCVPixelFormatType_32BGRA, shared, &square)
    }}

    /// A frame of any size and pixel format: its middle square is scaled to the function's. Floats by output name.
    func answer(_ frame: CVPixelBuffer) throws -> [String: MLMultiArray] {{
        guard let square else {{ throw CocoaError(.featureUnsupported) }}
        let image = CIImage(cvPixelBuffer: frame), side = min(image.extent.width, image.extent.height)
        let middle = image.extent.insetBy(dx: (image.extent.width - side) / 2, dy: (image.extent.height - side) / 2)
        let scale = CGFloat(Self.size) / side
        let fitted = image.cropped(to: middle).transformed(by: CGAffineTransform(translationX: -middle.minX, y: -middle.minY))
            .transformed(by: CGAffineTransform(scaleX: scale, y: scale))
        context.render(fitted, to: square)
        let input = try MLDictionaryFeatureProvider(dictionary: ["frame": MLFeatureValue(pixelBuffer: square)])
        let found = try model.prediction(from: input)
        var answers: [String: MLMultiArray] = [:]
        for name in function.outputs {{ answers[name] = found.featureValue(for: name)?.multiArrayValue }}
        return answers
    }}

    func captureOutput(_ output: AVCaptureOutput, didOutput sample: CMSampleBuffer, from connection: AVCaptureConnection) {{
        guard let frame = CMSampleBufferGetImageBuffer(sample) else {{ return }}
        do {{ onAnswer?(try answer(frame)) }} catch {{ onError?(error) }}
    }}
}}
"""


MACOS = {"16": "13", "17": "14", "18": "15"}  # from iOS 26 on they count alike


def swift(name: str, config: TaskTokConfig, functions: Sequence[Function], *, target: str, several: bool) -> str:
    """Write the file for a bundle's functions; nothing in it needs to be edited.

    `target` is the deployment target, such as iOS18; `several` says whether all functions are in one package.
    """
    ios = target.removeprefix("iOS")
    packages = "one function a task and kind, weights shared" if several else "a package a function, RestorerFunction.package"
    cases, outputs = [], []
    for function in functions:
        names = ", ".join(f'"{one}"' for one in output_names(function, config.tasks[function.task].kind))
        cases.append(f'    case {_camel(function.entry)} = "{function.entry}"')
        outputs.append(f"        case .{_camel(function.entry)}: return [{names}]")
    labels = []
    for task in dict.fromkeys(f.task for f in functions):
        listed = ", ".join(_quoted(label) for label in config.tasks[task].labels)
        labels.append(f"    static let {_camel(task)} = [{listed}]")
    return TEMPLATE.format(
        name=name,
        packages=packages,
        ios=ios,
        macos=MACOS.get(ios, ios),
        choice="        configuration.functionName = function.rawValue\n" if several else "",
        package="model.mlpackage" if several else "\\(rawValue).mlpackage",
        size=config.image_size,
        cases="\n".join(cases),
        outputs="\n".join(outputs),
        labels="\n".join(labels),
    )


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _quoted(text: str) -> str:
    """A string as Swift takes it, whatever a label holds."""
    safe = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text)
    return f'"{safe}"'
