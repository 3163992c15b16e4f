// Apple's image types around Preprocess.swift: files in, pixel buffers out, and dumps for nailtool's parity check.
import Foundation

#if canImport(CoreGraphics) && canImport(ImageIO)
import CoreGraphics
import ImageIO

/// Decode a photo file to upright RGB. Its colour profile is left out, as in training: the pixels are
/// relabelled device RGB before they are drawn, so that nothing is converted. CGContext knows colours
/// multiplied by alpha alone: a PNG with alpha differs from Python where it is not opaque.
public func decodePhoto(_ file: Data) throws -> RGBImage {
    let options = [kCGImageSourceShouldCache: false] as CFDictionary
    guard let source = CGImageSourceCreateWithData(file as CFData, options),
        let stored = CGImageSourceCreateImageAtIndex(source, 0, options)
    else { throw PreprocessError.badImage("these \(file.count) bytes are no image") }
    let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, options) as? [CFString: Any]
    let orientation = (properties?[kCGImagePropertyOrientation] as? NSNumber)?.intValue ?? 1
    let deviceRGB = CGColorSpaceCreateDeviceRGB()
    let image = stored.copy(colorSpace: deviceRGB) ?? stored  // nil: grey or CMYK, which must be converted
    var bytes = [UInt8](repeating: 0, count: image.width * image.height * 4)
    let drawn = bytes.withUnsafeMutableBytes { buffer -> Bool in
        guard
            let context = CGContext(
                data: buffer.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                bytesPerRow: image.width * 4, space: deviceRGB,
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
        else { return false }
        context.interpolationQuality = .none  // drawn at its own size: nothing is to be interpolated
        context.setBlendMode(.copy)
        context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
        return true
    }
    guard drawn else { throw PreprocessError.badImage("\(image.width)x\(image.height) px cannot be drawn") }
    var pixels = [UInt8](repeating: 0, count: image.width * image.height * 3)
    for pixel in 0..<(image.width * image.height) {
        for channel in 0..<3 { pixels[3 * pixel + channel] = bytes[4 * pixel + channel] }
    }
    let upright = try RGBImage(height: image.height, width: image.width, pixels: pixels)
    return try turnUpright(upright, orientation: orientation)
}
#endif

#if canImport(CoreVideo)
import CoreVideo

/// A camera frame in 32BGRA (ask AVCaptureVideoDataOutput for it: converting its YUV is then Apple's work).
public func readPixelBuffer(_ buffer: CVPixelBuffer) throws -> RGBImage {
    guard CVPixelBufferGetPixelFormatType(buffer) == kCVPixelFormatType_32BGRA else {
        throw PreprocessError.badBuffer("the pixel format is not 32BGRA")
    }
    CVPixelBufferLockBaseAddress(buffer, .readOnly)
    defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
    guard let base = CVPixelBufferGetBaseAddress(buffer) else {
        throw PreprocessError.badBuffer("the pixel buffer has no memory")
    }
    let height = CVPixelBufferGetHeight(buffer)
    let width = CVPixelBufferGetWidth(buffer)
    let stride = CVPixelBufferGetBytesPerRow(buffer)  // rows may be padded
    let bytes = base.assumingMemoryBound(to: UInt8.self)
    var pixels = [UInt8](repeating: 0, count: height * width * 3)
    for y in 0..<height {
        for x in 0..<width {
            let from = y * stride + 4 * x
            let to = (y * width + x) * 3
            pixels[to] = bytes[from + 2]
            pixels[to + 1] = bytes[from + 1]
            pixels[to + 2] = bytes[from]
        }
    }
    return try RGBImage(height: height, width: width, pixels: pixels)
}

/// The letterboxed image as the model's image input takes it: 32BGRA, which CoreML reorders to the RGB
/// that the model declares.
public func makePixelBuffer(_ image: RGBImage) throws -> CVPixelBuffer {
    var created: CVPixelBuffer?
    let attributes = [kCVPixelBufferIOSurfacePropertiesKey: [String: Any]()] as CFDictionary
    let status = CVPixelBufferCreate(
        kCFAllocatorDefault, image.width, image.height, kCVPixelFormatType_32BGRA, attributes, &created)
    guard status == kCVReturnSuccess, let buffer = created else {
        throw PreprocessError.badBuffer("CVPixelBufferCreate returned \(status)")
    }
    CVPixelBufferLockBaseAddress(buffer, [])
    defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
    guard let base = CVPixelBufferGetBaseAddress(buffer) else {
        throw PreprocessError.badBuffer("the pixel buffer has no memory")
    }
    let stride = CVPixelBufferGetBytesPerRow(buffer)
    let bytes = base.assumingMemoryBound(to: UInt8.self)
    for y in 0..<image.height {
        for x in 0..<image.width {
            let from = (y * image.width + x) * 3
            let to = y * stride + 4 * x
            bytes[to] = image.pixels[from + 2]
            bytes[to + 1] = image.pixels[from + 1]
            bytes[to + 2] = image.pixels[from]
            bytes[to + 3] = 255
        }
    }
    return buffer
}
#endif

#if canImport(CryptoKit)
import CryptoKit

/// Writes what `nailtool parity-check --ios-dump` reads: one line of JSON, then the RGB bytes.
public struct DumpWriter {
    public enum Stage: String, Codable {
        case decode  // the upright photo at its own size
        case preprocess  // the network's input
    }

    private struct Header: Codable {
        let format: String
        let version: Int
        let stage: Stage
        let photo_sha256: String
        let pixels_sha256: String
        let height_px: Int
        let width_px: Int
        let device: String
        let system: String
    }

    public let device: String
    public let system: String

    public init(device: String, system: String) {
        self.device = device
        self.system = system
    }

    /// `photo`: the bytes of the very file that was preprocessed; the dump is bound to their hash.
    public func write(_ image: RGBImage, stage: Stage, photo: Data, to url: URL) throws {
        let pixels = Data(image.pixels)
        let header = Header(
            format: "nailtool-rgb", version: 1, stage: stage, photo_sha256: DumpWriter.hash(photo),
            pixels_sha256: DumpWriter.hash(pixels), height_px: image.height, width_px: image.width,
            device: device, system: system)
        var data = try JSONEncoder().encode(header)
        data.append(0x0A)
        data.append(pixels)
        try data.write(to: url, options: .atomic)
    }

    private static func hash(_ data: Data) -> String {
        SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
    }
}
#endif
