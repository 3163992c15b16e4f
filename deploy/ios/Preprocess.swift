// A photograph or camera frame -> the network's input, as nailcore/preprocess.py makes it; docs/preprocessing.md.
import Foundation

/// The nearest uint8 to the networks' mean: padding is "nothing" to them.
public let padValue: UInt8 = 128

public enum PreprocessError: Error, Equatable {
    case badImage(String)
    case badBuffer(String)
}

/// RGB pixels, row by row, three bytes each, no padding between rows.
public struct RGBImage: Equatable {
    public let height: Int
    public let width: Int
    public var pixels: [UInt8]

    public init(height: Int, width: Int, pixels: [UInt8]) throws {
        guard height > 0, width > 0, pixels.count == height * width * 3 else {
            throw PreprocessError.badImage("\(pixels.count) bytes are no RGB image of \(width)x\(height) px")
        }
        self.height = height
        self.width = width
        self.pixels = pixels
    }
}

/// How a (height, width) photo lies inside the input: scaled, then padded evenly.
public struct Letterbox: Equatable {
    public let height: Int
    public let width: Int
    public let inputHeight: Int
    public let inputWidth: Int

    public init(height: Int, width: Int, inputHeight: Int, inputWidth: Int) {
        self.height = height
        self.width = width
        self.inputHeight = inputHeight
        self.inputWidth = inputWidth
    }

    /// Input pixels per photo pixel.
    public var scale: Double {
        min(Double(inputHeight) / Double(height), Double(inputWidth) / Double(width))
    }

    public var scaledHeight: Int { Letterbox.fit(height, scale, inputHeight) }
    public var scaledWidth: Int { Letterbox.fit(width, scale, inputWidth) }
    public var top: Int { (inputHeight - scaledHeight) / 2 }
    public var left: Int { (inputWidth - scaledWidth) / 2 }

    private static func fit(_ side: Int, _ scale: Double, _ limit: Int) -> Int {
        // Python rounds halves to the even neighbour.
        let rounded = Int((Double(side) * scale).rounded(.toNearestOrEven))
        return max(1, min(limit, rounded))
    }
}

/// The source pixels that make one target pixel of an axis: `first`, `first + 1`, ... and their weights.
struct Taps {
    let first: Int
    let weights: [Double]
}

/// Shrinking: each target pixel is the mean of what it covers.
func coverArea(from: Int, to: Int) -> [Taps] {
    let step = Double(from) / Double(to)
    return (0..<to).map { target in
        let start = Double(target) * step
        let end = min(start + step, Double(from))
        let first = min(Int((start + 1e-3).rounded(.down)), from - 1)
        let last = max(first, min(Int((end - 1e-3).rounded(.up)) - 1, from - 1))
        let weights = (first...last).map { source in
            min(Double(source + 1), end) - max(Double(source), start)
        }
        let sum = weights.reduce(0, +)
        return Taps(first: first, weights: weights.map { $0 / sum })
    }
}

/// Enlarging: bilinear between pixel centres (half-pixel convention), the border repeated.
func blendNeighbours(from: Int, to: Int) -> [Taps] {
    (0..<to).map { target in
        let place = (Double(target) + 0.5) * Double(from) / Double(to) - 0.5
        let first = Int(place.rounded(.down))
        if first < 0 { return Taps(first: 0, weights: [1]) }
        if first >= from - 1 { return Taps(first: from - 1, weights: [1]) }
        let share = place - Double(first)
        return Taps(first: first, weights: [1 - share, share])
    }
}

/// One source row, resampled to `taps.count` RGB pixels.
private func resampleRow(_ image: RGBImage, _ row: Int, _ taps: [Taps]) -> [Double] {
    var result = [Double](repeating: 0, count: taps.count * 3)
    let start = row * image.width * 3
    image.pixels.withUnsafeBufferPointer { pixels in
        for (x, tap) in taps.enumerated() {
            var at = start + tap.first * 3
            var red = 0.0
            var green = 0.0
            var blue = 0.0
            for weight in tap.weights {
                red += weight * Double(pixels[at])
                green += weight * Double(pixels[at + 1])
                blue += weight * Double(pixels[at + 2])
                at += 3
            }
            result[3 * x] = red
            result[3 * x + 1] = green
            result[3 * x + 2] = blue
        }
    }
    return result
}

/// The whole recipe after decoding: aspect kept, padded with `padValue`, still uint8 RGB. Do not divide
/// by 255 or subtract a mean afterwards: both are inside the model.
public func letterbox(_ image: RGBImage, inputHeight: Int, inputWidth: Int) throws -> RGBImage {
    let box = Letterbox(
        height: image.height, width: image.width, inputHeight: inputHeight, inputWidth: inputWidth)
    let plan = box.scale < 1 ? coverArea : blendNeighbours
    let columns = plan(image.width, box.scaledWidth)
    let rows = plan(image.height, box.scaledHeight)
    var result = [UInt8](repeating: padValue, count: inputHeight * inputWidth * 3)
    let length = box.scaledWidth * 3
    var kept: [Int: [Double]] = [:]  // resampled source rows; neighbouring targets share at most two
    for (y, tap) in rows.enumerated() {
        kept = kept.filter { $0.key >= tap.first }
        var total = [Double](repeating: 0.5, count: length)  // rounding, before the fraction is cut off
        for (offset, weight) in tap.weights.enumerated() {
            let source = tap.first + offset
            let row = kept[source] ?? resampleRow(image, source, columns)
            kept[source] = row
            for at in 0..<length { total[at] += weight * row[at] }
        }
        let start = ((box.top + y) * inputWidth + box.left) * 3
        for at in 0..<length { result[start + at] = UInt8(min(255, total[at])) }
    }
    return try RGBImage(height: inputHeight, width: inputWidth, pixels: result)
}

/// Turn stored pixels upright by an EXIF orientation (1...8), pixel by pixel.
public func turnUpright(_ image: RGBImage, orientation: Int) throws -> RGBImage {
    guard (1...8).contains(orientation) else {
        throw PreprocessError.badImage("EXIF orientation \(orientation) is not 1...8")
    }
    if orientation == 1 { return image }
    let swapped = orientation >= 5
    let height = swapped ? image.width : image.height
    let width = swapped ? image.height : image.width
    var pixels = [UInt8](repeating: 0, count: image.pixels.count)
    for y in 0..<height {
        for x in 0..<width {
            let (row, column) = storedPlace(y, x, image.height, image.width, orientation)
            let from = (row * image.width + column) * 3
            let to = (y * width + x) * 3
            for channel in 0..<3 { pixels[to + channel] = image.pixels[from + channel] }
        }
    }
    return try RGBImage(height: height, width: width, pixels: pixels)
}

/// Where the upright pixel (y, x) is stored, in an image of `height` x `width` stored pixels.
private func storedPlace(_ y: Int, _ x: Int, _ height: Int, _ width: Int, _ orientation: Int) -> (Int, Int) {
    switch orientation {
    case 2: return (y, width - 1 - x)
    case 3: return (height - 1 - y, width - 1 - x)
    case 4: return (height - 1 - y, x)
    case 5: return (x, y)
    case 6: return (height - 1 - x, y)
    case 7: return (height - 1 - x, width - 1 - y)
    case 8: return (x, width - 1 - y)
    default: return (y, x)
    }
}
