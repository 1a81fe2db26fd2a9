"""Programs that try to leave the sandbox through SciPy and PIL; `programs` has the others and says what they find.

``OF_LIBRARIES`` programs go through the check of the language, ``WITH_LIBRARIES`` programs start without it.
"""

from __future__ import annotations

PICTURE = "from PIL import Image, ImageDraw, ImageFilter, ImageOps\np = Image.fromarray(img)\n"
OF_LIBRARIES: dict[str, str] = {
    "scipy: a C function to call": "from scipy import LowLevelCallable as c\nprint(c)",
    "scipy: a C function, by attribute": "import scipy\nprint(scipy.LowLevelCallable)",
    "scipy: a C function of ctypes": "import ctypes\nprint(ndimage.generic_filter(img, ctypes.CDLL(None).system, 3))",
    "scipy: its loader": "import scipy\nprint(scipy.__loader__.get_data(secret))",
    "ndimage: its loader": "print(ndimage.__spec__.loader.get_data(secret))",
    "scipy: private modules": "import scipy._lib._ccallback as c\nprint(c.ctypes.CDLL(None))",
    "scipy: private names": "from scipy import _lib\nprint(_lib._ccallback.ctypes)",
    "scipy: files of MATLAB": "from scipy import io\nprint(io.loadmat(secret))",
    "scipy: sound files": "import scipy.io.wavfile as w\nprint(w.read(readable))",
    "scipy: data sets": "import scipy\nprint(scipy.datasets.face())",
    "scipy: modules in modules": "import scipy\nprint(scipy.special.sys.modules['os'].listdir(folder))",
    "ndimage: modules in modules": "print(ndimage.filters.os.listdir(folder))",
    "ndimage: tests": "print(ndimage.test(extra_argv=[folder]))",
    "ndimage: globals of a function": "print(ndimage.zoom.__globals__['__builtins__']['open'](secret).read())",
    "ndimage: what a function wraps": "print(ndimage.zoom.__wrapped__.__globals__)",
    "ndimage: format of a function": "t = '{0._' + '_globals_' + '_}'\nprint(t.format(ndimage.zoom))",
    "ndimage: a frame in a callback": (
        "def f(w):\n    g = (x for x in [1])\n    print(g.gi_frame.f_back.f_back.f_builtins['open'](secret).read())\n"
        "ndimage.generic_filter(img, f, 3)"
    ),
    "ndimage: a traceback of a callback": (
        "def f(w): return 1 / 0\ntry: ndimage.generic_filter(img, f, 3)\n"
        "except ZeroDivisionError as e: print(e.with_traceback(None).tb_frame.f_builtins['open'](secret).read())"
    ),
    "ndimage: a callback that changes the array": (
        "a = np.ones((64, 64))\ndef f(w):\n    a.resize((1, 1), refcheck=False)\n    return 1.0\n"
        "print(ndimage.generic_filter(a, f, 3))"
    ),
    "ndimage: far coordinates": "print(ndimage.map_coordinates(img, [[1e300], [-1e300]], order=0, mode='wrap'))",
    "ndimage: no coordinates": "print(ndimage.map_coordinates(img, [[np.nan], [np.inf]], order=3))",
    "ndimage: a far origin": "print(ndimage.correlate(img, np.ones((3, 3)), origin=2**31 - 1))",
    "ndimage: labels of another size": "print(ndimage.sum_labels(img, np.full((4, 4), 2**40), [2**40, -(2**60)]))",
    "ndimage: structures of objects": "print(ndimage.binary_erosion(img, np.array([[print, img, None]] * 3)))",
    "ndimage: an output on other memory": (
        "a = np.lib.stride_tricks.as_strided(img, (10**6,), (1,))\nndimage.gaussian_filter(a, 1, output=a)"
    ),
    "ndimage: a bomb of memory": "print(ndimage.zoom(img, 10**5).shape)",
    "ndimage: a bomb of sizes": "print(ndimage.zoom(img, (2**40, 2**40)).shape)",
    "ndimage: a bomb of padding": "print(ndimage.uniform_filter(img, 2**30))",
    "ndimage: a bomb of steps": "a = np.eye(3000)\nprint(ndimage.binary_dilation(a, iterations=10**9, mask=a < 9))",
    "PIL: open": PICTURE + "print(Image.open(secret))",
    "PIL: open, imported": "from PIL.Image import open as o\nprint(o(readable).tobytes())",
    "PIL: save": PICTURE + "p.save(folder + '/' + name + '.png')",
    "PIL: save in a format": PICTURE + "p.save(folder + '/' + name, 'PNG')",
    "PIL: save in a format without a plug-in": PICTURE + "p.save(folder + '/' + name, format='PPM')",
    "PIL: save, called from elsewhere": PICTURE
    + "print(list(map(Image.Image.save, [p], [folder + '/' + name + '.bmp'])))",
    "PIL: save all": PICTURE + "p.save(folder + '/' + name + '.gif', save_all=True, append_images=[p])",
    "PIL: show": PICTURE + "p.show()",
    "PIL: show of a subclass": PICTURE + "ImageOps.invert(p).show(command='touch ' + folder + '/' + name)",
    "PIL: its C module": PICTURE + "print(Image.core.map_buffer(secret, (4, 4), 'raw', 0, ('L', 0, 1)))",
    "PIL: a picture in C": PICTURE + "p.im.save_ppm(folder + '/' + name)",
    "PIL: a pointer": PICTURE + "print(p.getim(), p.im.unsafe_ptrs)",
    "PIL: another mode for the same memory": PICTURE + "p.im.setmode('F')\nprint(np.asarray(p))",
    "PIL: plug-ins": "from PIL import PngImagePlugin as m\nprint(m.PngImageFile(secret))",
    "PIL: EPS, which starts Ghostscript": "import PIL.EpsImagePlugin as m\nprint(m.Ghostscript)",
    "PIL: all plug-ins": PICTURE + "Image.init()\nImage.preinit()\nprint(Image.OPEN)",
    "PIL: a picture of the screen": "from PIL import ImageGrab\nprint(ImageGrab.grab())",
    "PIL: a font file": "from PIL import ImageFont\nprint(ImageFont.truetype(readable, 9))",
    "PIL: a font file of a drawing": (
        PICTURE
        + "d = ImageDraw.Draw(p)\nf = d.getfont()\nprint(f.font_variant(font=secret))\nd.text((0, 0), 'a', font=f)"
    ),
    "PIL: an old font file": PICTURE + "print(ImageDraw.Draw(p).getfont().load_path(readable))",
    "PIL: a palette file": PICTURE + "p.quantize(4).palette.save(folder + '/' + name)",
    "PIL: a colour profile": "from PIL import ImageCms\nprint(ImageCms.ImageCmsProfile(secret))",
    "PIL: a colour profile by conversion": PICTURE + "print(p.convert('RGB').convert('LAB'))",
    "PIL: expressions": 'from PIL import ImageMath\nprint(ImageMath.unsafe_eval(\'__import__("os").listdir("/")\'))',
    "PIL: eval that is none": PICTURE + "Image.eval('open(secret).read()', p)",
    "PIL: modules in modules": PICTURE + "print(Image.tempfile.mkdtemp(dir=folder))",
    "PIL: modules of a class": PICTURE + "print(ImageFilter.Kernel.__init__.__globals__)",
    "PIL: a drawing's modules": PICTURE + "print(ImageDraw.Draw(p).draw.__self__, ImageDraw.ImageFont)",
    "PIL: a decoder": PICTURE + "p.frombytes(bytes(10**4), 'libtiff', 'jpeg', 3, 2**31)\nprint(p)",
    "PIL: an encoder": PICTURE + "print(p.tobytes('raw', 'L', 2**31 - 1, -1), p.tobytes('zip', 'L', 9, 9, 9, b''))",
    "PIL: a decoder that reads too far": PICTURE + "p.frombytes(b'', 'raw', 'L', 2**31 - 1, -1)\nprint(np.asarray(p))",
    "PIL: a decoder of a program's": PICTURE + "Image.register_decoder('a', open)\np.frombytes(b'', 'a', secret)",
    "PIL: bad strides": PICTURE
    + "a = np.lib.stride_tricks.as_strided(img, (9, 9), (2**40, 1))\nprint(Image.fromarray(a))",
    "PIL: strides that go back": PICTURE + "print(np.asarray(Image.fromarray(img[::-1, ::-2])).tobytes())",
    "PIL: strides of nothing": PICTURE + "Image.fromarray(np.broadcast_to(img[:1, :1], (10**6, 10**6)))",
    "PIL: an array that is something else": PICTURE + "Image.fromarray(np.array([[print, img]]), 'RGB')",
    "PIL: a mode that the array has not": PICTURE + "print(np.asarray(Image.fromarray(img[:1, :1], 'RGBA')).tobytes())",
    "PIL: a picture of any size": PICTURE + "print(Image.new('RGBA', (2**31 - 1, 2**31 - 1)))",
    "PIL: a bomb of memory": PICTURE + "print(p.resize((2**16, 2**16)))",
    "PIL: a bomb of rotation": PICTURE + "q = p.resize((2**15, 1))\nprint(q.rotate(45, expand=True))",
    "PIL: a far crop": PICTURE + "print(p.crop((-(2**31), -(2**31), 2**31 - 1, 2**31 - 1)))",
    "PIL: a far pixel": PICTURE + "print(p.getpixel((2**31 - 1, -(2**31))), p.load()[10**9, 10**9])",
    "PIL: a far drawing": PICTURE
    + "d = ImageDraw.Draw(p)\nd.polygon([(-1e300, 1e300), (1e300, 1e300), (0, -1e300)], 1)",
    "PIL: a long blur": PICTURE + "print(p.resize((4000, 4000)).filter(ImageFilter.RankFilter(999, 5)))",
    "PIL: a wide kernel": PICTURE + "print(p.filter(ImageFilter.Kernel((5, 5), [float('nan')] * 25, scale=0)))",
    "PIL: a table of colours": PICTURE + "print(p.point(range(10**8)))",
    "PIL: a cube of colours": PICTURE + "print(p.filter(ImageFilter.Color3DLUT.generate(65, lambda *c: (img,) * 3)))",
    "PIL: a transform of a program's": PICTURE
    + "print(p.transform((9, 9), Image.MESH, [((0, 0, 2**31, 9), (1e300,) * 8)]))",
    "PIL: methods of another name": PICTURE
    + "match p:\n case Image.Image(im=c): print(c.save_ppm(folder + '/' + name))",
}

LOADED = "import numpy as np, scipy, scipy.ndimage as ndimage, PIL.Image as Image, PIL.ImageDraw as ImageDraw, sys\n"
# A function that takes (double *, npy_intp, double *, void *), as ndimage calls it: the path is in the buffer.
CALLED = (
    LOADED + "def called(function, argument):\n"
    "    text = argument.encode() + bytes(-len(argument) % 8 + 8)\n"
    "    function.restype = ctypes.c_int\n"
    "    function.argtypes = [ctypes.POINTER(ctypes.c_double), ctypes.c_ssize_t, ctypes.POINTER(ctypes.c_double), "
    "ctypes.c_void_p]\n"
    "    values = np.frombuffer(text, float)\n"
    "    c = scipy.LowLevelCallable(function)\n"
    "    return ndimage.generic_filter(values, c, len(values), origin=-(len(values) // 2), mode='constant')\n"
)
WITH_LIBRARIES: dict[str, str] = {
    "scipy: unlink as a filter": CALLED + "print(called(libc.unlink, readable))",
    "scipy: mkdir as a filter": CALLED + "print(called(libc.mkdir, folder + '/' + name))",
    "scipy: system as a filter": CALLED + "print(called(libc.system, 'touch ' + folder + '/' + name))",
    "scipy: its loader": LOADED + "print(scipy.__loader__.get_data(secret))",
    "scipy: its lazy modules": LOADED + "print('ESCAPED', scipy.io)",
    "scipy: ctypes of its callbacks": LOADED + "print(scipy._lib._ccallback.ctypes.CDLL('libm.so.6'))",
    "scipy: a process of its tests": LOADED + "sys.modules['subprocess'].run(['true'])\nprint('ESCAPED')",
    "scipy: files of its modules": LOADED + "print(sys.modules['pathlib'].Path(secret).read_text())",
    "scipy: archives of its modules": LOADED + "print(sys.modules['zipfile'].ZipFile(readable))",
    "scipy: temporary files": LOADED + "sys.modules['tempfile'].mkdtemp(dir=folder)",
    "PIL: open": LOADED + "try: Image.open(readable)\nexcept Image.UnidentifiedImageError: print('ESCAPED')",
    "PIL: save": LOADED + "Image.new('L', (4, 4)).save(folder + '/' + name, 'PPM')",
    "PIL: show": LOADED + "Image.new('L', (4, 4)).show()\nprint('ESCAPED')",
    "PIL: a viewer": LOADED + "import PIL.ImageShow\nPIL.ImageShow.show(Image.new('L', (4, 4)))\nprint('ESCAPED')",
    "PIL: Ghostscript": LOADED + "import PIL.EpsImagePlugin as m\nm.has_ghostscript()\nprint('ESCAPED')",
    "PIL: a font file": LOADED + "print('ESCAPED', sys.modules['PIL.ImageFont'].truetype(readable, 9))",
    "PIL: a font file in C": LOADED + "print('ESCAPED', sys.modules['PIL.ImageFont'].core.getfont(secret, 9))",
    "PIL: plug-ins": LOADED + "Image.preinit()\nprint('ESCAPED' if Image.OPEN else 'refused')",
}
