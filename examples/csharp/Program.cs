// Predict images: dotnet run -- model.onnx photo.jpg ... Prints one JSON object per image.
// The file comes from `tl export --input any-size`.
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using SkiaSharp;

if (args.Length < 2)
{
    Console.Error.WriteLine("usage: dotnet run -- model.onnx photo.jpg ...");
    return 2;
}
using var session = new InferenceSession(args[0]);
using var contract = JsonDocument.Parse(session.ModelMetadata.CustomMetadataMap["tl.contract"]);
string[] classNames = contract.RootElement.GetProperty("class_names").Deserialize<string[]>()!;
using var options = new RunOptions();
foreach (string path in args[1..])
{
    (byte[] rgb, int height, int width) = Images.ReadRgb(path);
    using var images = OrtValue.CreateTensorValueFromMemory(rgb, [1L, height, width, 3L]);
    var inputs = new Dictionary<string, OrtValue> { ["images"] = images };
    using var outputs = session.Run(options, inputs, ["probabilities"]);
    float[] probabilities = outputs[0].GetTensorDataAsSpan<float>().ToArray();
    string label = classNames[Array.IndexOf(probabilities, probabilities.Max())];
    Console.WriteLine(JsonSerializer.Serialize(new { path, label, probabilities }));
}
return 0;

/// <summary>Decode images to upright RGB: alpha over white, gray in all three channels, EXIF applied.</summary>
static class Images
{
    public static (byte[] Rgb, int Height, int Width) ReadRgb(string path)
    {
        using var codec = SKCodec.Create(path) ?? throw new InvalidDataException($"{path}: not an image");
        // Unpremultiplied 8-bit RGBA without color management: a null color space leaves the values as they are.
        var info = new SKImageInfo(codec.Info.Width, codec.Info.Height, SKColorType.Rgba8888, SKAlphaType.Unpremul, null);
        using var bitmap = new SKBitmap(info);
        SKCodecResult result = codec.GetPixels(info, bitmap.GetPixels());
        if (result != SKCodecResult.Success)
        {
            throw new InvalidDataException($"{path}: {result}"); // a truncated image is an error, not half an image
        }
        return Upright(bitmap.GetPixelSpan(), bitmap.RowBytes, info.Height, info.Width, (int)codec.EncodedOrigin);
    }

    // Skia's origins are the EXIF orientations 1 to 8.
    static (byte[], int, int) Upright(ReadOnlySpan<byte> rgba, int rowBytes, int height, int width, int orientation)
    {
        bool isTurned = orientation >= 5;
        (int h, int w) = isTurned ? (width, height) : (height, width);
        var rgb = new byte[h * w * 3];
        for (int y = 0; y < h; y++)
        {
            for (int x = 0; x < w; x++)
            {
                (int sy, int sx) = isTurned ? (x, y) : (y, x);
                if (orientation is 2 or 3 or 7 or 8) sx = width - 1 - sx;
                if (orientation is 3 or 4 or 6 or 7) sy = height - 1 - sy;
                int from = sy * rowBytes + 4 * sx, to = 3 * (y * w + x), alpha = rgba[from + 3];
                for (int c = 0; c < 3; c++)
                {
                    rgb[to + c] = (byte)((alpha * rgba[from + c] + (255 - alpha) * 255 + 127) / 255);
                }
            }
        }
        return (rgb, h, w);
    }
}
